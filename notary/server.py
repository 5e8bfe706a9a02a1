"""The socket: who may ask for what, in which order.

One connection is one job. The table below is the whole of what may be asked; the caller is known by the kernel's word
(SO_PEERCRED), and a message that the table does not permit ends the connection, having done nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import pwd
import socket
from collections.abc import Coroutine
from typing import Any

from integrity.errors import ArchiveError, DagsealError, MalformedError, OutOfScopeError
from integrity.fields import to_base64
from integrity.messages import MAX_FDS, Message
from launcher.channel import Channel, Received, close_all
from launcher.log import log
from launcher.modes import made_by
from notary.context import Context
from notary.describing import describe
from notary.running import EXIT_REFUSED, run
from notary.serialising import serialise
from notary.unpromised import warnings

VERSION = "0.1.0"

# kind -> (how many descriptors it may bring, the policy's list of accounts that may send it)
REQUESTS: dict[str, tuple[tuple[int, ...], str]] = {
    "identity": ((0,), "anyone"),
    "describe": ((1,), "describe"),
    "serialise": ((1,), "describe"),
    "run": ((1, 2), "run"),  # which of the two, its ticket says
}
# kind -> (what looks into the archive, the answer's kind)
_LOOKING = {"describe": (describe, "described"), "serialise": (serialise, "serialised")}
_IDLE_SECONDS = 60
_HOUSEKEEPING_SECONDS = 60
_ACCEPT_AGAIN_SECONDS = 0.1
_STRANGER_FRAME_BYTES = 4096
_STRANGER_CONNECTIONS = 32


class Server:
    """Serves until `stop`. Every job's task tree is dead when it returns."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._jobs: set[asyncio.Task[None]] = set()
        self._strangers: set[Channel] = set()
        self._stop = asyncio.Event()

    def stop(self) -> None:
        self._stop.set()

    async def serve_listener(self, listener: socket.socket) -> None:
        """Serve who connects to the policy's socket: from now on one can."""
        listener.listen(128)
        try:
            await self._serve(self._accept(listener))
        finally:
            listener.close()

    async def serve_caller(self, stdin: socket.socket, uid: int) -> None:
        """Serve who started us, until its end of our stdin closes."""
        try:
            await self._serve(self._take(Channel(stdin, limit=_STRANGER_FRAME_BYTES), uid))
        finally:
            stdin.close()

    async def _serve(self, taking: Coroutine[Any, Any, None]) -> None:
        keeping = asyncio.create_task(self._housekeeping())
        accepting = asyncio.create_task(taking)
        try:
            await self._stop.wait()
        finally:
            for task in (keeping, accepting, *self._jobs):
                task.cancel()
            await asyncio.gather(keeping, accepting, *self._jobs, return_exceptions=True)
            await self._context.pool.end()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors: those who are connected will leave
                log("accept-failed", detail=str(error))
                await asyncio.sleep(_ACCEPT_AGAIN_SECONDS)
                continue
            self._begin(sock)

    async def _take(self, stdin: Channel, uid: int) -> None:
        """Each `connect` brings our end of a socket pair that the caller made; whoever else made one is not heard, as the
        caller could pass on a socket that another account is at the end of."""
        try:
            while True:
                received = await stdin.receive(max_fds=1)
                sock = socket.socket(fileno=received.fds[0]) if received.fds else None
                if received.message.kind != "connect" or sock is None:
                    raise MalformedError("stdin takes `connect`, with one descriptor, and nothing else")
                received.message.fields.done()
                if made_by(sock) != uid:
                    sock.close()
                    raise OutOfScopeError("the caller passed a socket that another account made")
                sock.setblocking(False)
                self._begin(sock)
        except EOFError:
            log("caller-gone")
        except (DagsealError, OSError) as error:
            log("refused", detail=str(error))
        finally:
            self.stop()

    def _begin(self, sock: socket.socket) -> None:
        job = asyncio.create_task(self._converse(sock))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    async def _converse(self, sock: socket.socket) -> None:
        try:
            channel = self._admit(sock)
        except OutOfScopeError as error:
            log("refused", detail=str(error))
            sock.close()
            return
        try:
            while True:
                async with asyncio.timeout(_IDLE_SECONDS):
                    received = await channel.receive(max_fds=MAX_FDS)
                fds = list(received.fds)
                try:
                    if await self._answer(channel, received.message, fds):
                        return
                except DagsealError as error:
                    await self._refuse(channel, received, error)
                    return
                finally:
                    close_all(fds)
        except (EOFError, TimeoutError):
            return
        except DagsealError as error:
            log("refused", detail=str(error))
        except Exception as bug:
            log("bug", detail=f"{type(bug).__name__}: {bug}")
            raise
        finally:
            channel.close()
            self._strangers.discard(channel)

    def _admit(self, sock: socket.socket) -> Channel:
        """Who is on no list can ask for the identity: with short frames, and not from many connections at once."""
        channel = Channel(sock)
        name = self._name_of(channel.peer.uid)
        if name in self._context.policy.may_run | self._context.policy.may_describe:
            return channel
        if len(self._strangers) >= _STRANGER_CONNECTIONS:
            raise OutOfScopeError(f"unix user {name}: too many connections from accounts that are on no list")
        channel = Channel(sock, limit=_STRANGER_FRAME_BYTES)
        self._strangers.add(channel)
        return channel

    async def _answer(self, channel: Channel, message: Message, fds: list[int]) -> bool:
        """Do one request; whether the connection is at its end. What is left in `fds` is the caller's to close."""
        counts, may = REQUESTS.get(message.kind, ((), ""))
        if not may:
            raise MalformedError(f"{message.kind!r} is not a request; known are {', '.join(REQUESTS)}")
        if len(fds) not in counts:
            expected = " or ".join(map(str, counts))
            raise MalformedError(f"{message.kind!r} brings {expected} descriptors, not {len(fds)}")
        self._require(channel.peer.uid, may)
        if message.kind == "identity":
            message.fields.done()
            await channel.send("identity", **self._identity())
            return False
        if message.kind in _LOOKING:
            await self._look(channel, message, fds[0])
            return True
        await run(self._context, channel, message, fds)
        return True

    async def _look(self, channel: Channel, message: Message, fd: int) -> None:
        """A caller that hangs up, or speaks out of turn, ends the job."""
        look, answer = _LOOKING[message.kind]
        work = asyncio.create_task(look(self._context, message, fd))
        word = asyncio.create_task(channel.receive())
        try:
            await asyncio.wait({work, word}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                word.result()
                raise MalformedError("nothing is to be sent while an archive is looked into")
            await channel.send(answer, **work.result())
        finally:
            work.cancel()
            word.cancel()
            await asyncio.gather(work, word, return_exceptions=True)

    def _name_of(self, uid: int) -> str:
        """Of a rootless launcher's callers the kernel names only the account that it belongs to; all others are one number."""
        owner = self._context.owner
        if owner is None:
            return account_name(uid)
        return owner.name if uid == 0 else "(another than the launcher's)"

    def _require(self, uid: int, may: str) -> None:
        policy = self._context.policy
        allowed = {"run": policy.may_run, "describe": policy.may_describe}.get(may)
        if allowed is None:
            return
        name = self._name_of(uid)
        if name not in allowed:
            raise OutOfScopeError(
                f"unix user {name} may not ask for this: it is not in peers.{may} of the launcher's policy"
            )

    async def _refuse(self, channel: Channel, received: Received, error: DagsealError) -> None:
        peer = channel.peer
        detail = str(error)[:4096]
        self._context.journal.write(
            "refused", request=received.message.kind, uid=peer.uid, error=error.slug, detail=detail[:1000]
        )
        more: dict[str, Any] = (
            {"rule": error.rule, "entry": error.entry[:1024]}
            if isinstance(error, ArchiveError)
            else {"rule": "", "entry": ""}
        )
        if isinstance(error, ArchiveError):
            detail = error.detail[:4096]
        with contextlib.suppress(EOFError):
            await channel.send("refused", error=error.slug, detail=detail, exit_code=EXIT_REFUSED, **more)

    def _identity(self) -> dict[str, Any]:
        keys = self._context.keys
        return {
            "verify_key": to_base64(keys.signing.public.raw),
            "sealing_key": to_base64(keys.sealing.public.raw),
            "version": VERSION,
            "privileged": self._context.privileged,
            "warnings": warnings(self._context.policy, self._context.mode),
        }

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)
            await self._context.pool.retire_idle()
            self._context.journal.forget_expired()


def account_name(uid: int) -> str:
    """The account's name, or `uid N` where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
