"""Airflow's own supervisor (`airflow_supervisor.py`), in a process of its own, beside tasks that a warm process forks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from task_rig import DEADLINE_SECONDS, ROOT, Answer, Grant, Warm

SCRIPT = Path(__file__).with_name("airflow_supervisor.py")
RUN_ID = "scheduled__2026-01-31T00:00:00+00:00"
_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervised:
    """A task's last word, and what its supervisor says: `asked`, the kinds of its requests; `calls` of the API; `state`."""

    answer: Answer
    asked: list[str]
    calls: list[list[Any]]
    state: str | None

    def pushed(self, key: str = "return_value") -> Any:
        """The value of the XCom that it set last under this key."""
        return [body for method, path, body in self.calls if method == "POST" and path.endswith(f"/{key}")][-1]

    def told(self, last: str) -> Any:
        """The body of the last call whose path ends so."""
        return [body for _, path, body in self.calls if path.endswith(last)][-1]


class Supervisor:
    """One process for all the tests of a session: what one task pushed the next can pull."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (self._control, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ANSWER_BYTES)
        self._control.settimeout(DEADLINE_SECONDS)
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(theirs.fileno())], pass_fds=[theirs.fileno()], cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "AIRFLOW_HOME": "/nonexistent"},
        )  # fmt: skip
        theirs.close()
        assert self._control.recv(16) == b"ready"

    def watch(
        self, dag_id: str, task_id: str, context: dict[str, Any] | None = None, *, leaves: bool = False, **changes: Any
    ) -> socket.socket:
        """The task's end of the socket, in which the startup of this task is on its way. One that `leaves` answers nothing."""
        ours, theirs = socket.socketpair()
        ti = {
            "id": "01938e5c-7a5e-7b4c-9e0d-7f1f3c2b1a00", "dag_version_id": "01938e5c-7a5e-7b4c-9e0d-7f1f3c2b1a01",
            "dag_id": dag_id, "task_id": task_id, "run_id": RUN_ID, "map_index": -1, "try_number": 1, **changes,
        }  # fmt: skip
        data = json.dumps({"ti": ti, "context": context or {}, "leaves": leaves}).encode()
        socket.send_fds(self._control, [data], [theirs.fileno()])
        theirs.close()
        return ours

    def report(self, answer: Answer) -> Supervised:
        """Once the task is gone."""
        return Supervised(answer=answer, **json.loads(self._control.recv(_ANSWER_BYTES)))

    def run(
        self,
        warm: Warm,
        data: bytes,
        dag_id: str,
        task_id: str,
        *,
        grant: Grant | None = None,
        context: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Supervised:
        sock = self.watch(dag_id, task_id, context, **changes)
        answer = warm.run(
            f"{dag_id}.py", data, dag_id, task_id, grant or Grant(), supervisor=sock, run_id=RUN_ID, **changes
        )
        return self.report(answer)

    def close(self) -> None:
        self._control.close()
        self._process.wait(DEADLINE_SECONDS)
