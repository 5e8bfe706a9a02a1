"""One forked task as the launcher sees it: a control channel, a secrets pipe, a log pipe, a tree that can be killed.

Order of a start: fork, confinement, kernel-attested hello, own tree, and only then the job. So no byte of a DAG runs outside
a tree that `end` kills whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import secrets
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from integrity.digests import Digest
from integrity.errors import DagsealError, FetchError, MalformedError, PrivilegeError
from integrity.grants import MAX_SECRET_BYTES
from integrity.messages import Message
from launcher import privileges
from launcher.channel import Channel, close_all, closing_fds, wait_readable, wait_writable
from launcher.trees import InitTree, Tree, Trees, has_ended, kill_all
from launcher.warmprocess import WarmProcess

_CUT = b"\n[dagseal] the log is cut here: it is over the limit of %d bytes\n"
_PIECE_BYTES = 256 * 1024
_START_SECONDS = 10.0
_LAST_WORDS_CHARS = 1000
_PIPE_BYTES = 65_536  # of a new pipe (pipe(7))


class TaskLog:
    """What the task writes, capped and hashed. Bytes over the cap are read and dropped, so the task never blocks on it."""

    def __init__(self, read_fd: int, *, max_bytes: int) -> None:
        os.set_blocking(read_fd, False)
        self._fd = read_fd
        self._left = max_bytes
        self._max = max_bytes
        self._hasher = hashlib.sha512()
        self.bytes = 0
        self.truncated = False
        self._pending = bytearray()
        self._news = asyncio.Event()
        self._pump = asyncio.create_task(self._read())
        self._ended = False

    async def _read(self) -> None:
        try:
            while True:
                try:
                    data = os.read(self._fd, _PIECE_BYTES)
                except BlockingIOError:
                    await wait_readable(self._fd)
                    continue
                if not data:
                    return
                self._keep(data)
        finally:
            self._ended = True
            self._news.set()

    def _keep(self, data: bytes) -> None:
        if self.truncated:
            return
        kept = data[: self._left]
        self._left -= len(kept)
        if len(kept) < len(data):
            self.truncated = True
            kept += _CUT % self._max
        self._hasher.update(kept)
        self.bytes += len(kept)
        self._pending += kept
        self._news.set()

    async def pieces(self) -> AsyncIterator[bytes]:
        """What was logged so far, then what comes, until every writer is gone."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._pending:
                piece = bytes(self._pending[:_PIECE_BYTES])
                del self._pending[: len(piece)]
                yield piece
            if self._ended:
                return

    @property
    def digest(self) -> Digest:
        return Digest(self._hasher.hexdigest())

    async def end(self) -> None:
        """Read what is left, once every process of the task is dead."""
        self._pump.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._pump
        # The tree is dead, but it may have handed its end of the pipe to somebody else: take what is there, wait for nothing.
        with contextlib.suppress(BlockingIOError):
            while not self.truncated and (data := os.read(self._fd, _PIECE_BYTES)):
                self._keep(data)
        self._ended = True
        self._news.set()
        os.close(self._fd)


def _last_words(log: int) -> str:
    """The last line that a task process said which never got a job: our own code's, so it can be believed."""
    os.set_blocking(log, False)
    try:
        lines = os.read(log, _PIECE_BYTES).decode("utf-8", "replace").split("\n")
    except BlockingIOError:
        return ""
    return next((line for line in reversed(lines) if line), "")[:_LAST_WORDS_CHARS]


@dataclass(slots=True)
class TaskProcess:
    """A forked, confined and attached task, which waits for its job. The holder calls `end`, whatever happens."""

    pid: int
    warm: WarmProcess
    channel: Channel
    log: TaskLog
    tree: Tree
    own_word: dict[str, int]
    _forked_as: int
    _pidfd: int
    _secrets_fd: int

    @classmethod
    async def fork(cls, warm: WarmProcess, trees: Trees, *, max_log_bytes: int, max_frame: int) -> TaskProcess:
        """Fork from `warm`, check who said hello, attach. Nothing is left of it when this raises.

        Raises `PrivilegeError` or `MalformedError`, or `FetchError` when the warm process died or does not answer.
        """
        account, namespaced = warm.kind.account, warm.kind.confinement.profile.namespaces
        ours, theirs = socket.socketpair()
        secrets_read, secrets_write = os.pipe()
        log_read, log_write = os.pipe()
        channel = Channel(ours, limit=max_frame)
        channel.ask_for_credentials()
        pidfd, adopting = -1, None
        try:
            async with asyncio.timeout(_START_SECONDS):
                with theirs, closing_fds(secrets_read, log_write):
                    forked_as = await warm.fork([theirs.fileno(), secrets_read, log_write])
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
            pidfd = os.pidfd_open(sender.pid)
            adopting = asyncio.create_task(asyncio.to_thread(trees.adopt, sender.pid, f"task-{secrets.token_hex(8)}"))
            tree = await asyncio.shield(adopting)
        except BaseException as error:
            channel.close()
            if pidfd >= 0:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if adopting is not None:  # a thread goes on when we are cancelled: what it makes is taken away all the same
                with contextlib.suppress(OSError, DagsealError):
                    await (await adopting).remove()
            words = _last_words(log_read) if isinstance(error, Exception) else ""
            close_all([fd for fd in (secrets_write, log_read, pidfd) if fd >= 0])
            if words:
                raise PrivilegeError(f"the task's process could not be made ready: {words}") from None
            if isinstance(error, EOFError | TimeoutError | ProcessLookupError):
                raise FetchError(
                    f"the warm process of unix user {account.name} died or hangs: it is replaced, try again"
                ) from None
            raise
        if namespaced:
            tree = InitTree(pidfd, tree)
        log = TaskLog(log_read, max_bytes=max_log_bytes)
        return cls(sender.pid, warm, channel, log, tree, own_word, forked_as, pidfd, secrets_write)

    @property
    def alive(self) -> bool:
        return not has_ended(self._pidfd)

    async def ask(self, job: dict[str, Any], *fds: int) -> None:
        """Its job, the verified bytes, and where their modules' code is, or is to be put. Raises `EOFError` when it died."""
        await self.channel.send("job", pass_fds=fds, **job)

    async def answer(self, *kinds: str) -> Message:
        """The task's next word, one of `kinds`. Raises `EOFError` when it died, `MalformedError` for any other word."""
        message = await self._while_alive()
        if message.kind not in kinds:
            raise MalformedError(f"the task said {message.kind!r}, expected is {' or '.join(kinds)}")
        return message

    async def _while_alive(self) -> Message:
        """A task that crashed may have left the socket open in its children: its death counts, not only the socket's end."""
        word = asyncio.create_task(self.channel.receive())
        death = asyncio.create_task(wait_readable(self._pidfd))
        try:
            await asyncio.wait({word, death}, return_when=asyncio.FIRST_COMPLETED)
            if not word.done():
                # Its last word may still be in the socket; a dead process adds nothing to it.
                await asyncio.wait({word}, timeout=0.05)
            if word.done():
                return word.result().message
            raise EOFError("the task's process died without a word")
        finally:
            for waiting in (word, death):
                waiting.cancel()
            await asyncio.gather(word, death, return_exceptions=True)

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
                    await wait_writable(self._secrets_fd)
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
            await self.tree.kill()
            while self.tree.misses_orphans and (left := await self.warm.orphans()):
                await kill_all(left)
        finally:
            self.warm.forget(self._forked_as)
            self.channel.close()
            close_all([fd for fd in (self._pidfd, self._secrets_fd) if fd >= 0])
            await self.log.end()
