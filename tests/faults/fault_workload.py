"""A workload that goes on through crashes, as real callers do: push, launch, look, and try again when nobody answers.

What was acknowledged is written down here; what has to be true of it afterwards is `test_f01_kill9.py`. Progress is counted
(`Progress`), so that a crash can be tied to a point of the work instead of to a moment of the clock.
"""

from __future__ import annotations

import http.client
import random
import re
import threading
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from integrity.digests import Digest
from tests.live import ENDED, Answer, Live
from vocabulary import zipwriter

RETRYABLE = frozenset({408, 425, 429})
_NO_ANSWER = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)
_GIVE_UP_TRIES = 400
_MOST_OPEN_LAUNCHES = 8

ONCE = '''"""Says in a file that it ran: a line when it begins, a line when it ends. And leaves a daemon behind."""

import os
import signal

from airflow.sdk import DAG, task

with DAG("once", schedule=None, catchup=False):

    @task
    def mark(**context):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                while True:
                    signal.pause()
            os._exit(0)
        fd = os.open({marker!r}, os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"begin " + context["run_id"].encode() + b"\\n")
        total = sum(number * number for number in range(200_000))
        os.write(fd, b"end " + context["run_id"].encode() + b"\\n")
        os.close(fd)
        return total % 97

    mark()
'''

SMALL = """from airflow.sdk import DAG, task

with DAG({dag_id!r}, schedule=None, catchup=False):

    @task
    def work():
        return {number}

    work()
"""


class Progress:
    """A count of steps that the workload made. `reach` waits for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._closed = False

    @property
    def count(self) -> int:
        return self._count

    def tick(self) -> None:
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def close(self) -> None:
        """No more steps will come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def reach(self, count: int) -> bool:
        """Return when so many steps were made; False when the work ended before."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._count >= count)
            return self._count >= count

    def stir(self, seconds: float) -> None:
        """Wait until somebody makes a step, or so long: what a caller does between two tries."""
        with self._changed:
            seen = self._count
            self._changed.wait_for(lambda: self._count != seen, timeout=seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledged:
    """One upload that was answered with 200 or 201."""

    name: str
    number: int
    data: bytes

    @property
    def digest(self) -> Digest:
        return Digest.of(self.data)


@dataclass(slots=True)
class Workload:
    """Runs until so many uploads and launches are acknowledged and `enough` says so."""

    live: Live
    uploads: int
    launches: int
    marker: Path
    enough: Callable[[], bool]
    tell: Callable[[list[Any]], None] = lambda about: None  # hears what was acknowledged, at once
    progress: Progress = field(default_factory=Progress)
    acknowledged: list[Acknowledged] = field(default_factory=list)
    created: dict[str, str] = field(default_factory=dict)  # launch id: run id
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: list[BaseException] = field(default_factory=list)
    retries: int = 0
    _taken: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _open: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_MOST_OPEN_LAUNCHES))
    _more: threading.Condition = field(default_factory=threading.Condition)
    _creating: bool = True

    def run(self, *, uploaders: int = 2) -> None:
        """All threads, to their end. Raises what the first of them raised."""
        self.upload("once.py", 1, ONCE.format(marker=str(self.marker)).encode())
        uploading = [threading.Thread(target=self._guarded, args=(self._uploader, who)) for who in range(uploaders)]
        launching = [threading.Thread(target=self._guarded, args=(step,)) for step in (self._creator, self._watcher)]
        for thread in uploading + launching:
            thread.start()
        for thread in uploading + launching:
            thread.join()
        self.progress.close()
        if self.failures:
            raise self.failures[0]

    def ask(self, method: str, path: str, body: Any = None) -> Answer:
        """As a real client: what fails to arrive, or is answered with a 5xx, is asked again."""
        for _ in range(_GIVE_UP_TRIES):
            try:
                answer = self.live.http(method, path, body)
            except _NO_ANSWER:
                answer = None
            if answer is not None and answer.status < 500 and answer.status not in RETRYABLE:
                return answer
            self.retries += 1
            self.progress.stir(0.5)
        raise AssertionError(
            f"{method} {path} was never answered; the API's log ends {self.live.stack.log_of('api')[-3000:]}"
        )

    def upload(self, name: str, number: int, data: bytes) -> None:
        self.progress.tick()  # the request is on its way
        answer = self.ask("PUT", f"/v1/archives/{name}", data)
        assert answer.status in (200, 201), (name, number, answer.status, answer.body)
        assert (answer.json["number"], answer.json["digest"]) == (number, str(Digest.of(data))), answer.body
        self.tell(["upload", name, number, str(Digest.of(data))])
        with self._lock:
            self.acknowledged.append(Acknowledged(name=name, number=number, data=data))
        self.progress.tick()

    def _guarded(self, step: Callable[..., None], *arguments: Any) -> None:
        try:
            step(*arguments)
        except BaseException as error:
            self.failures.append(error)
            self.progress.close()
            self._open.release()

    def _done(self, count: int, wanted: int) -> bool:
        return bool(self.failures) or (count >= wanted and self.enough())

    def _uploader(self, who: int) -> None:
        """Archives of its own, each with one to four releases: some `.py`, some `.zip`, every upload with bytes of its own."""
        rng = random.Random(who)
        archive = 0
        while not self._done(self._taken, self.uploads):
            kind = "zip" if rng.random() < 0.3 else "py"
            for number in range(1, rng.randint(1, 4) + 1):
                with self._lock:
                    self._taken += 1
                source = SMALL.format(dag_id=f"u{who}_{archive}", number=number) + "#" * rng.randint(0, 9000) + "\n"
                data = source.encode()
                if kind == "zip":
                    data = zipwriter.pack({"main.py": data, "beside/notes.txt": rng.randbytes(rng.randint(1, 70_000))})
                self.upload(f"u{who}_{archive}.{kind}", number, data)
            archive += 1

    def _creator(self) -> None:
        try:
            number = 0
            while not self._done(number, self.launches):
                self._open.acquire()
                run_id = f"run-{number}"
                wanted = {"dag_id": "once", "task_id": "mark", "run_id": run_id}
                answer = self.ask("POST", "/v1/launches", wanted)
                if answer.status == 409:  # an earlier try of ours was heard, its answer was not
                    found = re.search(r"is launch ([0-9a-f]{32})", answer.json["detail"])
                    assert found, answer.body
                    launch_id = found[1]
                else:
                    assert answer.status == 201, answer.body
                    launch_id = answer.json["id"]
                self.tell(["launch", launch_id, "queued"])
                with self._more:
                    self.created[launch_id] = run_id
                    self._more.notify_all()
                self.progress.tick()
                number += 1
        finally:
            with self._more:
                self._creating = False
                self._more.notify_all()

    def _watcher(self) -> None:
        """Sees every launch to its end, the oldest first."""
        seen: dict[str, str] = {}
        while True:
            with self._more:
                self._more.wait_for(lambda: len(self.created) > len(self.ended) or not self._creating)
                waiting = [launch_id for launch_id in self.created if launch_id not in self.ended]
            if not waiting or self.failures:
                return
            for place, launch_id in enumerate(waiting):
                # Waits for the oldest, only looks at the others.
                answer = self.ask("GET", f"/v1/launches/{launch_id}" + ("?wait_seconds=1" if place == 0 else ""))
                assert answer.status == 200, answer.body
                state = answer.json["state"]
                if seen.get(launch_id) != state:
                    seen[launch_id] = state
                    self.progress.tick()
                if state in ENDED:
                    self.tell(["launch", launch_id, state])
                    self.ended[launch_id] = answer.json
                    self._open.release()
