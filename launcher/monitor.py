"""The privileged half: a table of what may be asked of it, by its one caller, the notary, and the policy's last word on each.

It holds no key, sees no grant, reads no ticket, no archive and no word of a task. After OpenSSH's monitor: what is asked comes
over a socket pair from a process that has dropped, and whoever takes that process over gets what stands in the table: warm
processes of accounts that the policy allows, confined as the policy says, and their death. Never root, never another account.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from integrity.errors import DagsealError, MalformedError, OutOfScopeError, PrivilegeError, SettingsError
from integrity.fields import Fields
from launcher import accounts, kinds, rootless
from launcher.accounts import Account
from launcher.channel import Channel, close_all
from launcher.log import log
from launcher.policy import Policy
from launcher.powers import LocalPowers

FRAME_BYTES = 64 * 1024
Answer = tuple[dict[str, Any], tuple[int, ...]]  # and descriptors, which are closed once they are sent
_MAX_PIDS = 10_000


class Monitor:
    """`owner` is the account of a rootless launcher. `now` gives seconds since 1970."""

    def __init__(
        self, policy: Policy, powers: LocalPowers, *, privileged: bool, owner: Account | None, now: Callable[[], int]
    ) -> None:
        self._policy = policy
        self._powers = powers
        self._privileged = privileged
        self._owner = owner
        self._now = now
        self._answers = {
            "account": self._account,
            "start": self._start,
            "end": self._end,
            "adopt": self._adopt,
            "kill": self._kill,
            "strays": self._strays,
        }
        self._under_way: set[asyncio.Task[None]] = set()

    async def serve(self, channel: Channel) -> None:
        """Answer until the other end is gone, or speaks out of the table. Every request has a number, and its answer the same:
        they may be under way together."""
        try:
            while True:
                message = (await channel.receive()).message
                number = message.fields.integer("number")
                if message.kind not in self._answers:
                    raise MalformedError(f"{message.kind!r} is not asked of a monitor")
                task = asyncio.create_task(self._answer(channel, number, message.kind, message.fields))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
        except EOFError:
            return
        except DagsealError as error:
            log("monitor-refused", detail=str(error))
        finally:
            await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _answer(self, channel: Channel, number: int, kind: str, fields: Fields) -> None:
        """A bug goes up where it is asked for, not here: the other requests have nothing to do with it."""
        word, fds = "refused", tuple[int, ...]()
        try:
            said, fds = await self._answers[kind](fields)
            word = "done"
        except (DagsealError, OSError) as error:
            said = {"error": error.slug if isinstance(error, DagsealError) else "launcher", "detail": str(error)[:4096]}
        except Exception as bug:
            log("bug", detail=f"{type(bug).__name__}: {bug}")
            said = {"error": "bug", "detail": f"in the monitor: {type(bug).__name__}: {bug}"[:4096]}
        with contextlib.suppress(EOFError):
            await channel.send(word, number=number, pass_fds=fds, **said)
        close_all(fds)

    async def _account(self, fields: Fields) -> Answer:
        name, purpose = fields.text("name", max_chars=100), fields.choice("purpose", ("run", "describe"))
        fields.done()
        found = self.account(name, purpose)
        return {**asdict(found), "groups": list(found.groups)}, ()

    async def _start(self, fields: Fields) -> Answer:
        name, purpose = fields.text("name", max_chars=100), fields.choice("purpose", ("run", "describe"))
        profile, variant = fields.text("profile", max_chars=100), fields.integer("variant")
        fields.done()
        account = self.account(name, purpose)
        if purpose == "run":
            kind = kinds.of_run(self._policy, account, profile)
        else:
            kind = kinds.of_description(self._policy, account, variant)
        started = await self._powers.start(kind)
        return {"pid": started.pid}, (started.control_fd, started.pidfd)

    async def _end(self, fields: Fields) -> Answer:
        warm = fields.integer("warm")
        fields.done()
        return {"code": await self._powers.end(warm)}, ()

    async def _adopt(self, fields: Fields) -> Answer:
        warm, pid = fields.integer("warm"), fields.integer("pid")
        fields.done()
        found = await self._powers.adopt(warm, pid)
        return {"namespaces": None if found is None else list(found)}, ()

    async def _kill(self, fields: Fields) -> Answer:
        pid = fields.integer("pid")
        fields.done()
        return asdict(await self._powers.kill(pid)), ()

    async def _strays(self, fields: Fields) -> Answer:
        warm, pids = fields.integer("warm"), fields.take("pids")
        fields.done()
        if not isinstance(pids, list) or len(pids) > _MAX_PIDS or not all(type(pid) is int for pid in pids):
            raise MalformedError("pids is to be a list of numbers")
        await self._powers.kill_strays(warm, frozenset(pids))
        return {}, ()

    def account(self, name: str, purpose: str) -> Account:
        """Check 7: whom a task, or a description, may run as here. Raises `PrivilegeError` naming the rule."""
        if purpose == "describe":
            return self._parser(name)
        if self._privileged:
            return self._becomable(accounts.resolve(name, self._policy.users, now=self._now()))
        own = accounts.invoking_account()
        if name != own.name:
            raise PrivilegeError(
                f"unix user {name} cannot be become: the launcher runs as {own.name} without root; start it as root,"
                f" or launch as {own.name}"
            )
        return own

    def _parser(self, name: str) -> Account:
        """The parser user, or without root the invoking user."""
        if name != self._policy.parser:
            raise OutOfScopeError(f"descriptions run as {self._policy.parser}, not as {name}")
        if not self._privileged:
            return accounts.invoking_account()
        parser = self._becomable(accounts.look_up(self._policy.parser))
        if parser.uid in accounts.uids_of(self._policy.may_run | self._policy.may_describe | {self._policy.notary}):
            raise SettingsError(
                f"users.parser {parser.name} is a peer's or the notary's account too: an import could read its files"
            )
        return parser

    def _becomable(self, account: Account) -> Account:
        """What runs as the launcher's own account could signal it, and enter user namespaces that it owns."""
        if account.uid == os.geteuid():
            raise PrivilegeError(f"unix user {account.name} is the launcher's own account: nothing of a DAG runs as it")
        return account if self._owner is None else rootless.require_within(account)
