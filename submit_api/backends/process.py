"""One secrets backend's process: started when it is first asked, asked one name at a time, started again when it died.

What runs there is somebody else's code: it is told nothing but names, its answers are framed, capped and numbered, its output
goes nowhere, and when it is late or says what it was not asked it is killed with its process group. The process confines
itself before it imports the class (`dagseal/airflow/secrets_process.py`); one that cannot is not asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import structlog

from integrity import messages
from integrity.errors import FetchError, MalformedError, SettingsError
from submit_api import framing
from submit_api.settings import BackendSection

PROGRAM = "dagseal.airflow.secrets_process"
MAX_ANSWER_BYTES = 4 * 1024 * 1024
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
OURS = "DAGSEAL"
_AIRFLOW = {
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite://",  # in memory: it has no database
    "AIRFLOW__SECRETS__BACKEND": "",
}
_log = structlog.get_logger("submit_api")


@dataclass(slots=True, kw_only=True)
class _Running:
    process: asyncio.subprocess.Process
    peer: socket.socket
    folder: str
    number: int = 0


class BackendProcess:
    """`hidden` are the files and folders of the API that the process must be found unable to open."""

    def __init__(
        self, name: str, section: BackendSection, *, hidden: tuple[str, ...], environ: Mapping[str, str]
    ) -> None:
        self.name = name
        self._section = section
        self._hidden = hidden
        self._environ = environ
        section.all_kwargs()  # that they can be read is found out at the start of the API
        self._running: _Running | None = None
        self._lock = asyncio.Lock()
        self._pause = 0.0
        self._not_before = 0.0

    async def ask(self, kind: str, name: str) -> str | None:
        """The value, or None where the backend has none. Raises `FetchError`: it is down, or was not fast enough."""
        async with self._lock:
            try:
                running = self._running or await self._start()
                # The class may import the rest of what it needs when it is first asked.
                starting = self._section.start_seconds if running.number == 0 else 0.0
                async with asyncio.timeout(starting + self._section.timeout_seconds):
                    return await self._ask(running, kind, name)
            except TimeoutError:
                await self._failed("was not fast enough")
            except (OSError, MalformedError, SettingsError) as error:
                await self._failed(f"ended, or said what it was not asked ({type(error).__name__})")
            except asyncio.CancelledError:
                await self._end()  # its answer to this question must not be taken for one to the next
                raise
        raise FetchError(f"secrets backend {self.name} does not answer: try again")

    async def close(self) -> None:
        async with self._lock:
            await self._end()

    async def _ask(self, running: _Running, kind: str, name: str) -> str | None:
        running.number += 1
        await self._send(running, messages.encode("ask", number=running.number, what=kind, name=name))
        answer = await framing.receive(running.peer, limit=MAX_ANSWER_BYTES)
        if answer.fields.integer("number") != running.number:
            raise MalformedError("an answer to another question")
        value, failure = None, ""
        if answer.kind == "found":
            value = answer.fields.text("value", max_chars=MAX_ANSWER_BYTES)
        elif answer.kind == "failed":
            failure = answer.fields.text("error", max_chars=100)
        elif answer.kind != "absent":
            raise MalformedError("no answer to a question")
        answer.fields.done()
        self._pause = 0.0
        if failure:
            _log.error("backend_failed", backend=self.name, error=failure)
            raise FetchError(f"secrets backend {self.name} failed with {failure}: try again")
        return value

    async def _start(self) -> _Running:
        loop = asyncio.get_running_loop()
        if loop.time() < self._not_before:
            raise FetchError(f"secrets backend {self.name} failed a moment ago: try again")
        folder = tempfile.mkdtemp(prefix="dagseal-backend-")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-m", PROGRAM, str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                cwd="/",
                env=self.environment(folder),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            theirs.close()
        self._running = running = _Running(process=process, peer=ours, folder=folder)
        opening = messages.encode(
            "open",
            class_path=self._section.class_path,
            kwargs=self._section.all_kwargs(),
            readable=self._section.readable,
            folder=folder,
            hidden=list(self._hidden),
            memory_bytes=self._section.memory_bytes,
        )
        async with asyncio.timeout(self._section.start_seconds):
            await self._send(running, opening)
            answer = await framing.receive(running.peer, limit=MAX_ANSWER_BYTES)
        if answer.kind != "opened":
            error = answer.fields.text("error", max_chars=100) if answer.kind == "failed" else answer.kind
            _log.error("backend_not_started", backend=self.name, error=error)
            raise MalformedError("it did not start")
        return running

    def environment(self, folder: str) -> dict[str, str]:
        """Nothing of the API's but what the settings name, and nothing of dagseal's own whatever they name."""
        passed = {
            name: value
            for name, value in self._environ.items()
            if not name.upper().startswith(OURS)
            and any(fnmatchcase(name, wanted) for wanted in self._section.environment)
        }
        own = dict.fromkeys(("HOME", "TMPDIR", "AIRFLOW_HOME", "AIRFLOW__LOGGING__BASE_LOG_FOLDER"), folder)
        return {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", **_AIRFLOW, **passed, **own}

    async def _send(self, running: _Running, frame: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(running.peer, frame)

    async def _failed(self, why: str) -> None:
        _log.error("backend_ended", backend=self.name, why=why)
        self._pause = min(max(2 * self._pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
        self._not_before = asyncio.get_running_loop().time() + self._pause
        await self._end()

    async def _end(self) -> None:
        """With its process group; its folder is removed."""
        running, self._running = self._running, None
        if running is None:
            return
        running.peer.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.process.pid, signal.SIGKILL)
        await running.process.wait()
        await asyncio.to_thread(shutil.rmtree, running.folder, ignore_errors=True)
