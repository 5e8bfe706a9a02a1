"""Three stories of a full disk, each told in a mount namespace of its own:

    unshare -m python -m tests.faults.fault_disk_full NAME

The folder of one service is put on a small tmpfs and filled up to a few pages. Whatever is asked then is refused by name or
tried again later; nothing half done stays; with room again the service goes on, without a restart.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagseal.stack import Stack
from notary import journal
from submit_api import fsck, settings
from tests.attacks.attacker import Peer, opened
from tests.faults.fault_workload import ONCE, SMALL
from tests.faults.test_f01_kill9 import marker_file
from tests.live import Live, running
from worker_cache import fsck as cache_fsck

_PAGE = 4096
_MIB = 1024 * 1024
_SHORT = "ticket_seconds = 8\nlost_after_seconds = 6\nwatch_interval_seconds = 0.2\n"


@contextmanager
def small_disk(part: str) -> Iterator[Live]:
    """A running stack whose folder `part` is a file system of 8 MiB. Everything is stopped and started once for that."""
    with running(more_api_toml=_SHORT) as live:
        stack: Stack = live.stack
        stack.stop()
        folder, aside = stack.folder / part, stack.folder / f"{part}.aside"
        subprocess.run(["cp", "-a", str(folder), str(aside)], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=True)
        subprocess.run(["cp", "-a", f"{aside}/.", str(folder)], check=True)
        # The agent's ten seconds between heartbeats are more than the six after which a launch is lost here.
        with (stack.folder / "agent.toml").open("a") as file:
            file.write("heartbeat_seconds = 0.5\n")
        stack.start()
        try:
            yield live
        finally:
            stack.stop()
            subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def full(folder: Path, *, but_pages: int) -> Iterator[None]:
    """Nothing more than so many pages can be written there."""
    ballast = folder / ".ballast"
    with ballast.open("wb", buffering=0) as file:
        # The service may still be clearing up behind its last work: what it frees meanwhile is filled as well.
        while left := _free_bytes(folder) - but_pages * _PAGE:
            if left < 0:
                file.truncate(file.tell() + left)
                file.seek(0, os.SEEK_END)
            else:
                file.write(bytes(min(left, _MIB)))
    try:
        yield
    finally:
        ballast.unlink()


def _free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def api() -> None:
    """Uploads meet the end of the disk at each of their steps: the upload's file, the blob's folder, the database."""
    statuses: list[tuple[int, int, str]] = []
    with small_disk("api") as live:
        folder = live.stack.folder / "api"
        assert live.push("before.py", SMALL.format(dag_id="before", number=0)).status == 201
        for pages in range(60):
            name, source = f"a{pages}.py", SMALL.format(dag_id=f"a{pages}", number=1) + "#" * 20_000 + "\n"
            with full(folder, but_pages=pages):
                answer = live.push(name, source)
                statuses.append((pages, answer.status, answer.problem if answer.status >= 400 else ""))
                assert live.http("GET", "/v1/archives/before.py").status == 200, "reading goes on"
                if answer.status == 201:
                    break
                assert answer.status in (503, 507), answer.body
                assert answer.headers["content-type"].startswith("application/problem+json")
                assert not list((folder / "blobs").glob(".tmp-*"))
                assert live.http("GET", f"/v1/archives/{name}").status == 404
            findings = asyncio.run(fsck.fsck(settings.load(str(live.stack.folder / "api.toml"))))
            assert findings == [], findings
            if pages % 5 == 0:
                again = live.push(name, source)
                assert again.status == 201, "with room again it goes on"
        assert statuses[0][1] == 507 and statuses[-1][1] == 201, statuses
        print(f"api: {statuses}")


def _asked(live: Live, run_id: str) -> str:
    made = live.http("POST", "/v1/launches", {"dag_id": "once", "task_id": "mark", "run_id": run_id})
    assert made.status == 201, made.body
    return str(made.json["id"])


def _runs(marker: Path, run_id: str) -> int:
    return marker.read_text().splitlines().count(f"begin {run_id}")


def _logged(live: Live, part: str, after: int, launch: str, *words: str) -> str:
    """Which of these words that process has logged; looked for between long polls of the launch."""
    for _ in range(90):
        text = live.stack.log_of(part)[after:]
        for word in words:
            if word in text:
                return word
        live.http("GET", f"/v1/launches/{launch}?wait_seconds=0.3")
    raise AssertionError(f"{part} did not log any of {words}: {text[-2000:]}")


def agent() -> None:
    """No room for the archive: the launch waits and then runs. No room for log or result: it ends, and runs at most once."""
    with small_disk("agent") as live:
        marker, folder = marker_file(live), live.stack.folder / "agent"
        assert live.push("once.py", ONCE.format(marker=str(marker))).status == 201
        with full(folder, but_pages=0):
            start = len(live.stack.log_of("agent"))
            launch = _asked(live, "no-cache")
            _logged(live, "agent", start, launch, "the cache cannot be written")
            assert live.http("GET", f"/v1/launches/{launch}").json["state"] in ("offered", "queued")
            assert _runs(marker, "no-cache") == 0
        assert live.wait(launch)["state"] == "success"
        assert _runs(marker, "no-cache") == 1

        for attempt in range(5):
            with full(folder, but_pages=0):
                ended = live.wait(_asked(live, f"no-spool-{attempt}"))
            ran = _runs(marker, f"no-spool-{attempt}")
            if ended["state"] != "success":
                break
            assert ran == 1, "what the agent cleared up meanwhile made room"
        assert ended["state"] in ("lost", "failed", "refused") and ran <= 1, (ended, ran)
        assert live.wait(_asked(live, "after"))["state"] == "success"
        assert _runs(marker, "after") == 1
        live.stack.stop()
        assert cache_fsck.check(str(live.stack.cache)).findings == ()
        print(f"agent: with a full spool the launch ended as {ended['state']}, its task ran {ran} times")


def _fill_last_page(live: Live) -> None:
    """A full disk still has room for lines in the journal's last page: until not even that of a refusal is taken."""
    for _ in range(_PAGE // 100):
        with Peer(live, live.stack.accounts.agent) as peer, opened(b"") as fd:
            try:
                assert peer.run(b"{}", b"{}", fd).kind == "refused"
            except EOFError:
                return
    raise AssertionError("the disk is not full")


def launcher() -> None:
    """What cannot be recorded does not happen: no task runs while the journal cannot be written; then it does, once."""
    with small_disk("launcher") as live:
        marker, folder = marker_file(live), live.stack.folder / "launcher"
        assert live.push("once.py", ONCE.format(marker=str(marker))).status == 201
        before = live.wait(_asked(live, "before"))
        assert before["state"] == "success", before
        for pages in range(3):
            run_id = f"full-{pages}"
            with full(folder, but_pages=pages):
                if not pages:
                    _fill_last_page(live)
                start = len(live.stack.log_of("agent"))
                launch = _asked(live, run_id)
                seen = _logged(live, "agent", start, launch, "launch not started or lost", "result delivered")
                runs = _runs(marker, run_id)
                if seen == "launch not started or lost":
                    events = [entry["event"] for entry in live.journal() if entry.get("launch_id") == launch]
                    assert runs == 0 or "grant" in events, events
                    assert pages or events == [], "a ticket was used with no room for its line"
                assert pages or (runs, seen) == (0, "launch not started or lost"), (
                    "a task ran with no room for its ticket"
                )
            ended = live.wait(launch)
            assert _runs(marker, run_id) <= 1
            assert ended["state"] != "success" or _runs(marker, run_id) == 1
            print(f"launcher: with {pages} pages left: {seen}, ran {runs} times; ended as {ended['state']}")
        assert live.wait(_asked(live, "after"))["state"] == "success"
        live.stack.stop()
        lines = (folder / "journal" / "journal.000000000001.jsonl").read_bytes().split(b"\n")[:-1]
        assert len(list(journal.verify(lines))) == len(lines)


def main(name: str) -> None:
    stories: dict[str, Any] = {"api": api, "agent": agent, "launcher": launcher}
    stories[name]()
    print(json.dumps({"told": name}))


if __name__ == "__main__":
    main(sys.argv[1])
