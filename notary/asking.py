"""The notary's end of the monitor's table: each power asked for over the socket pair, and the answer read strictly."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from typing import Any, Protocol

from integrity import errors
from integrity.errors import DagsealError, MalformedError, SecurityError
from launcher.accounts import Account
from launcher.channel import Channel, Received, close_all
from launcher.kinds import Kind
from launcher.powers import Killed, Started

_ANSWER_FDS = 2
_ERRORS = {
    kind.slug: kind
    for kind in (errors.PrivilegeError, errors.OutOfScopeError, errors.MalformedError, errors.SettingsError)
}


class Powers(Protocol):
    """As in `launcher.powers.LocalPowers`, asked for or at hand."""

    async def start(self, kind: Kind) -> Started: ...

    async def end(self, warm: int) -> int: ...

    async def adopt(self, warm: int, pid: int) -> tuple[str, ...] | None: ...

    async def kill(self, pid: int) -> Killed: ...

    async def kill_strays(self, warm: int, pids: frozenset[int]) -> None: ...


class Asking:
    """`Powers`, and accounts. Every method raises what the monitor refused with, and `EOFError` when it is gone."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Received]] = {}
        self._sending = asyncio.Lock()
        self._abandoned: set[asyncio.Task[None]] = set()
        self._gone = ""
        self._hearing = asyncio.create_task(self._hear())

    def when_gone(self, act: Callable[[], object]) -> None:
        """Once the monitor is gone, or its word cannot be read."""
        self._hearing.add_done_callback(lambda _: act())

    async def account(self, name: str, purpose: str) -> Account:
        fields = (await self._ask("account", name=name, purpose=purpose)).message.fields
        groups = fields.take("groups")
        if not isinstance(groups, list) or not all(type(gid) is int for gid in groups):
            raise MalformedError("the monitor's answer has no groups")
        found = Account(
            name=fields.text("name", max_chars=100),
            uid=fields.integer("uid"),
            gid=fields.integer("gid"),
            groups=tuple(groups),
            home=fields.text("home", max_chars=4096),
        )
        fields.done()
        return found

    async def start(self, kind: Kind) -> Started:
        profile = kind.confinement.profile.name
        starting = asyncio.create_task(
            self._ask("start", name=kind.account.name, purpose=kind.purpose, profile=profile, variant=kind.variant)
        )
        try:
            received = await asyncio.shield(starting)
        except asyncio.CancelledError:  # it is started all the same, and then it is to be ended
            self._abandoned.add(ending := asyncio.create_task(self._abandon(starting)))
            ending.add_done_callback(self._abandoned.discard)
            raise
        control, pidfd = received.fds
        return Started(pid=received.message.fields.integer("pid"), control_fd=control, pidfd=pidfd)

    async def _abandon(self, starting: asyncio.Task[Received]) -> None:
        with contextlib.suppress(DagsealError, OSError, EOFError):
            received = await starting
            close_all(received.fds)
            await self.end(received.message.fields.integer("pid"))

    async def end(self, warm: int) -> int:
        return (await self._ask("end", warm=warm)).message.fields.integer("code", least=-64)

    async def adopt(self, warm: int, pid: int) -> tuple[str, ...] | None:
        found = (await self._ask("adopt", warm=warm, pid=pid)).message.fields.take("namespaces")
        return None if found is None else tuple(found)

    async def kill(self, pid: int) -> Killed:
        fields = (await self._ask("kill", pid=pid)).message.fields
        return Killed(oom_kills=fields.integer("oom_kills"), misses_orphans=fields.take("misses_orphans") is True)

    async def kill_strays(self, warm: int, pids: frozenset[int]) -> None:
        await self._ask("strays", warm=warm, pids=sorted(pids))

    async def _ask(self, kind: str, **fields: Any) -> Received:
        """What is asked is done, also when who asked does not wait for the answer any more."""
        if self._gone:
            raise EOFError(self._gone)
        number = next(self._numbers)
        answer: asyncio.Future[Received] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        async with self._sending:
            await self._channel.send(kind, number=number, **fields)
        received = await answer
        if received.message.kind == "refused":
            slug, detail = (received.message.fields.text(key, max_chars=4096) for key in ("error", "detail"))
            if slug == "launcher":
                raise OSError(detail)
            if slug == "bug":
                raise RuntimeError(detail)
            raise _ERRORS.get(slug, SecurityError)(detail)
        return received

    async def _hear(self) -> None:
        try:
            while True:
                received = await self._channel.receive(max_fds=_ANSWER_FDS)
                answer = self._waiting.pop(received.message.fields.integer("number"), None)
                if answer is None or answer.done():  # nobody waits any more
                    close_all(received.fds)
                else:
                    answer.set_result(received)
        except (EOFError, DagsealError) as error:
            self._gone = f"the monitor is gone: {error}"
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(EOFError(self._gone))
