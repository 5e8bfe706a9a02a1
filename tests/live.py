"""A running dagseal for tests: the real API, agent and launcher in processes of their own, on loopback.

`Live` wraps `dagseal.stack.Stack` with what tests do all the time: call the API, push bytes, launch and wait, run the command
line. As root the API, the agent, the parser and the tasks are four different accounts; else all are the invoking one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagseal.footing import free_port
from dagseal.quickstart import default_user
from dagseal.stack import Stack
from vocabulary.claims import STATES as ENDED


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer; `problem` is the last part of a problem's type."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def problem(self) -> str:
        return str(self.json["type"]).rpartition("/")[2]


@dataclass(slots=True)
class Live:
    """`stack` is started; whoever made this ends it."""

    stack: Stack

    @property
    def user(self) -> str:
        return self.stack.task_user

    @property
    def shared(self) -> Path:
        """The one folder of the host that a task of any user may write; a description may write none."""
        return self.stack.writable[0]

    @property
    def token(self) -> str:
        return self.stack.admin_token.read_text().strip()

    def http(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """`body` is bytes, or something that becomes JSON. An empty `token` sends none."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(self.stack.url + path, data=data, method=method, headers=headers or {})
        given = self.token if token is None else token
        if given:
            request.add_header("Authorization", f"Bearer {given}")
        if data is not None and not request.has_header("Content-type"):
            request.add_header(
                "Content-Type", "application/octet-stream" if isinstance(body, bytes) else "application/json"
            )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())

    def push(self, name: str, data: bytes | str, query: str = "", *, token: str | None = None) -> Answer:
        raw = data.encode() if isinstance(data, str) else data
        return self.http("PUT", f"/v1/archives/{name}{query}", raw, token=token)

    def launch(self, dag_id: str, task_id: str, run_id: str, **more: Any) -> dict[str, Any]:
        """Reserve, wait until it ended, and return the launch. Fails the test when it is not accepted."""
        created = self.http("POST", "/v1/launches", {"dag_id": dag_id, "task_id": task_id, "run_id": run_id, **more})
        assert created.status == 201, created.body
        return self.wait(created.json["id"])

    def wait(self, launch_id: str) -> dict[str, Any]:
        """Until it ended, by long polls; at most four minutes."""
        for _ in range(8):
            found: dict[str, Any] = self.http("GET", f"/v1/launches/{launch_id}?wait_seconds=30").json
            if found["state"] in ENDED:
                return found
        raise AssertionError(f"launch {launch_id} is still {found['state']}")

    def log(self, launch_id: str) -> str:
        return self.http("GET", f"/v1/launches/{launch_id}/log").body.decode("utf-8", "replace")

    def audit(self, *, after: int = 0, **query: str) -> list[dict[str, Any]]:
        """All events, oldest first, from the one after this number on."""
        more = "".join(f"&{key}={value}" for key, value in query.items())
        events: list[dict[str, Any]] = []
        while page := self.http(
            "GET", f"/v1/audit?limit=1000&after={events[-1]['seq'] if events else after}{more}"
        ).json["events"]:
            events += page
        return events

    def paged(self, path: str, rows: str, key: str, after: str = "") -> list[dict[str, Any]]:
        """All rows of a list that comes by pages, from `after` on."""
        found: list[dict[str, Any]] = []
        while page := self.http("GET", f"{path}?limit=1000{after and f'&after={after}'}").json[rows]:
            found += page
            after = str(page[-1][key])
        return found

    def journal(self) -> list[dict[str, Any]]:
        """The launcher's own record."""
        files = sorted(self.journal_folder.glob("journal.*.jsonl"))
        return [json.loads(line) for path in files for line in path.read_bytes().splitlines()]

    @property
    def journal_folder(self) -> Path:
        return self.stack.folder / "launcher" / "journal"

    def cli(self, *arguments: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """One command of the command line, against this server."""
        return subprocess.run(
            [sys.executable, "-s", "-P", "-m", "dagseal.cli.app", *arguments],
            env=self.stack.environment(NO_COLOR="1", **environment),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )


@contextmanager
def running(*, beside: Path | None = None, kind: type[Stack] = Stack, **settings: Any) -> Iterator[Live]:
    """A fresh, started stack, in a folder beside others of `beside`; everything of it is gone afterwards. `settings` go to
    `Stack`, or another `kind` of it."""
    parent = Path(tempfile.mkdtemp(prefix="dagseal-test-", dir=beside)).resolve()
    parent.chmod(0o755)
    # Not sticky and short: any account may rename its file into place, and a DAG of 200 bytes has to name it.
    shared = Path(tempfile.mkdtemp(prefix="ds")).resolve()
    shared.chmod(0o777)
    given = {"task_user": default_user(), "writable": (shared,), **settings}
    # All tests call from one address, and many of them with tokens that fail.
    given["more_api_toml"] = given.get("more_api_toml", "") + "[failures]\nburst = 100000\n"
    stack = kind(folder=parent / "stack", port=free_port(), **given)
    try:
        stack.prepare()
        stack.start()
        live = Live(stack)
        rule = {
            "subject_kind": "principal",
            "subject": "admin",
            "dag_glob": "*",
            "unix_user": stack.task_user,
            "queue_glob": "*",
        }
        assert live.http("POST", "/v1/impersonation-rules", rule).status == 201
        yield live
    finally:
        stack.stop()
        shutil.rmtree(parent, ignore_errors=True)
        shutil.rmtree(shared, ignore_errors=True)
