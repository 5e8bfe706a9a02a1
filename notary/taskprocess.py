"""One forked task as the launcher sees it: a control channel, a secrets pipe, three log pipes, a tree that can be killed.

Order of a start: fork, confinement, kernel-attested hello, own tree, and only then the job. So no byte of a DAG runs outside
a tree that `end` kills whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from integrity.errors import DagsealError, FetchError, MalformedError, PrivilegeError
from integrity.messages import Message
from launcher import privileges
from launcher.channel import Channel, close_all, settle
from launcher.trees import has_ended
from notary.asking import Powers
from notary.tasklog import SOURCES, TaskLog
from notary.warmprocess import WarmProcess
from vocabulary.grants import MAX_SECRET_BYTES

_READ_BYTES = 64 * 1024
_START_SECONDS = 10.0
_LAST_WORDS_CHARS = 1000
_LAST_WORD_SECONDS = 0.05
_PIPE_BYTES = 65_536  # of a new pipe (pipe(7))


def _last_words(stderr: int) -> str:
    """The last line that a task process said which never got a job: our own code's, so it can be believed."""
    os.set_blocking(stderr, False)
    try:
        lines = os.read(stderr, _READ_BYTES).decode("utf-8", "replace").split("\n")
    except BlockingIOError:
        return ""
    return next((line for line in reversed(lines) if line), "")[:_LAST_WORDS_CHARS]


@contextlib.contextmanager
def _closing_fds(*fds: int) -> Iterator[None]:
    """Close them at the end of the block, whatever happens in it."""
    try:
        yield
    finally:
        close_all(fds)


async def _wait_writable(fd: int) -> None:
    """Return when `fd` takes bytes without blocking."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_writer(fd, settle, ready)
    try:
        await ready
    finally:
        loop.remove_writer(fd)


@dataclass(slots=True)
class TaskProcess:
    """A forked, confined and attached task, which waits for its job. The holder calls `end`, whatever happens."""

    pid: int
    warm: WarmProcess
    channel: Channel
    log: TaskLog
    namespaces: tuple[str, ...] | None
    own_word: dict[str, int]
    _powers: Powers
    _forked_as: int
    _pidfd: int
    _secrets_fd: int
    oom_kills: int = 0  # once it has ended

    @classmethod
    async def fork(
        cls, warm: WarmProcess, powers: Powers, *, open_log: Callable[[Sequence[int]], TaskLog], max_frame: int
    ) -> TaskProcess:
        """Fork from `warm`, check who said hello, attach. Nothing is left of it when this raises.

        Raises `PrivilegeError` or `MalformedError`, or `FetchError` when the warm process died or does not answer.
        """
        account, namespaced = warm.kind.account, warm.kind.confinement.profile.namespaces
        ours, theirs = socket.socketpair()
        secrets_read, secrets_write = os.pipe()
        log_read, log_write = zip(*(os.pipe() for _ in SOURCES), strict=True)
        channel = Channel(ours, limit=max_frame)
        channel.ask_for_credentials()
        pidfd, pid, adopting = -1, 0, None
        try:
            async with asyncio.timeout(_START_SECONDS):
                with theirs, _closing_fds(secrets_read, *log_write):
                    forked_as = await warm.fork([theirs.fileno(), secrets_read, *log_write])
                hello = await channel.receive()
            sender, said = hello.sender, hello.message.fields
            if hello.message.kind != "hello" or sender is None:
                raise MalformedError("the task's first word is not hello")
            own_word = {name: said.integer(name) for name in ("landlock_abi", "seccomp_denied")}
            said.done()
            if (sender.uid, sender.gid) != (account.uid, account.gid) or not (namespaced or sender.pid == forked_as):
                raise PrivilegeError(
                    f"hello came from {sender}, expected is {account.name} ({account.uid}:{account.gid})"
                )
            pid = sender.pid
            pidfd = os.pidfd_open(pid)
            adopting = asyncio.create_task(powers.adopt(warm.pid, pid))
            namespaces = await asyncio.shield(adopting)
        except BaseException as error:
            channel.close()  # at which it exits
            if adopting is not None:  # it is adopted also when we are cancelled, and taken away all the same
                with contextlib.suppress(OSError, DagsealError, EOFError):
                    await adopting
                    await powers.kill(pid)
            words = _last_words(log_read[SOURCES.index("stderr")]) if isinstance(error, Exception) else ""
            close_all([fd for fd in (secrets_write, *log_read, pidfd) if fd >= 0])
            if words:
                raise PrivilegeError(f"the task's process could not be made ready: {words}") from None
            if isinstance(error, EOFError | TimeoutError | ProcessLookupError):
                raise FetchError(
                    f"the warm process of unix user {account.name} died or hangs: it is replaced, try again"
                ) from None
            raise
        log = open_log(log_read)
        return cls(pid, warm, channel, log, namespaces, own_word, powers, forked_as, pidfd, secrets_write)

    @property
    def alive(self) -> bool:
        return not has_ended(self._pidfd)

    async def ask(self, job: dict[str, Any], *fds: int) -> None:
        """Its job, the verified bytes, and where their modules' code is, or is to be put. Raises `EOFError` when it died."""
        await self.channel.send("job", pass_fds=fds, **job)

    async def give_supervisor(self, fd: int) -> None:
        """Its end of its supervisor's socket. Raises `EOFError` when it died."""
        await self.channel.send("supervisor", pass_fds=(fd,))

    async def terminate(self) -> None:
        """Ask it to end by itself, as Airflow ends a task: its `on_kill` runs. Raises `EOFError` when it died."""
        await self.channel.send("terminate")

    async def answer(self, *kinds: str) -> Message:
        """The task's next word, one of `kinds`. Raises `EOFError` when it died, `MalformedError` for any other word."""
        message = await self._while_alive()
        if message.kind not in kinds:
            raise MalformedError(f"the task said {message.kind!r}, expected is {' or '.join(kinds)}")
        return message

    async def _while_alive(self) -> Message:
        """A task that crashed may have left the socket open in its children: its death counts, not only the socket's end."""
        loop = asyncio.get_running_loop()
        after_its_death = asyncio.timeout(None)

        def it_died() -> None:
            loop.remove_reader(self._pidfd)
            # Its last word may still be in the socket; a dead process adds nothing to it.
            after_its_death.reschedule(loop.time() + _LAST_WORD_SECONDS)

        try:
            async with after_its_death:
                loop.add_reader(self._pidfd, it_died)
                try:
                    return (await self.channel.receive()).message
                finally:
                    loop.remove_reader(self._pidfd)
        except TimeoutError:
            raise EOFError("the task's process died without a word") from None

    async def give_secrets(self, data: bytes) -> None:
        """Write them and close the pipe: the only place where a secret leaves the launcher. A task that does not read
        meets the caller's deadline, not ours."""
        os.set_blocking(self._secrets_fd, False)
        if len(data) > _PIPE_BYTES:
            # In one go instead of a piece per wake-up; where the user's pipes are used up already, in pieces.
            with contextlib.suppress(PermissionError):
                fcntl.fcntl(self._secrets_fd, fcntl.F_SETPIPE_SZ, MAX_SECRET_BYTES)
        view = memoryview(data)
        try:
            while view:
                try:
                    view = view[os.write(self._secrets_fd, view) :]
                except BlockingIOError:
                    await _wait_writable(self._secrets_fd)
        except BrokenPipeError:
            raise EOFError("the task closed its secrets pipe without reading it") from None
        finally:
            os.close(self._secrets_fd)
            self._secrets_fd = -1

    def max_rss_kib(self) -> int:
        """The most memory it held, while it still exists; 0 afterwards."""
        try:
            return int(privileges.status_of(self.pid).get("VmHWM", "0 kB").split()[0])
        except (OSError, ValueError):
            return 0

    async def end(self) -> None:
        """Kill the whole tree and read the rest of the log. Nothing of the task is left when this returns."""
        try:
            killed = await self._powers.kill(self.pid)
            self.oom_kills = killed.oom_kills
            if killed.misses_orphans:
                await self.warm.kill_strays()
        finally:
            self.warm.forget(self._forked_as)
            self.channel.close()
            close_all([fd for fd in (self._pidfd, self._secrets_fd) if fd >= 0])
            self.log.end()
