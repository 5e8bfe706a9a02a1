"""What every job of the launcher has in common: keys, policy, clock, journal, the pool. Built once, at start."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from integrity import durable
from integrity.errors import PrivilegeError, SettingsError
from integrity.keys import SealingKey, SigningKey
from launcher import accounts
from launcher.accounts import Account
from launcher.journal import Journal
from launcher.policy import Policy
from launcher.privileges import Identity
from launcher.replay import UsedTickets
from launcher.trees import CgroupTrees, WalkTrees
from launcher.warmpool import WarmPool

NOT_PROMISED_WITHOUT_ROOT = (
    "this launcher is not root: every task runs as {user}, the account of the launcher itself",
    "not promised: P2's separate users (a task can signal and read what {user} can), P3 between tasks",
    "not promised: a description has the network, as only root can take it away",
    "asking for any other unix user is refused, never skipped",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The launcher's own keys; their public halves are enrolled at the API by an administrator."""

    signing: SigningKey
    sealing: SealingKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Shared by all jobs. `now_us` gives microseconds since 1970."""

    policy: Policy
    keys: Keys
    journal: Journal
    used: UsedTickets
    pool: WarmPool
    trees: CgroupTrees | WalkTrees
    privileged: bool
    now_us: Callable[[], int]

    def now(self) -> int:
        """Seconds since 1970."""
        return self.now_us() // 1_000_000

    def task_account(self, name: str) -> Account:
        """Check 7. Raises `PrivilegeError` naming the rule."""
        if self.privileged:
            return accounts.resolve(name, self.policy.users, now=self.now())
        own = accounts.invoking_account()
        if name != own.name:
            raise PrivilegeError(
                f"unix user {name} cannot be become: the launcher runs as {own.name} without root; start it as root,"
                f" or launch as {own.name}"
            )
        return own

    def parser_account(self) -> Account:
        """Whom descriptions run as: the parser user, or without root the invoking user."""
        if not self.privileged:
            return accounts.invoking_account()
        parser = accounts.look_up(self.policy.parser)
        for peer in sorted(self.policy.may_run | self.policy.may_describe):
            if peer != "root" and accounts.look_up(peer).uid == parser.uid:
                raise SettingsError(
                    f"users.parser {parser.name} and peer {peer} are one account: an import could read its files"
                )
        return parser


def identity_of(account: Account) -> Identity:
    return Identity(account.uid, account.gid, account.groups)


def open_folder(parent_fd: int, name: str) -> int:
    """A private folder of the state directory, made if missing; its descriptor."""
    durable.make_folder(parent_fd, name)
    return open_private(name, dir_fd=parent_fd)


def open_private(name: str, *, dir_fd: int | None = None) -> int:
    """A folder that is ours alone; its descriptor. Raises `SettingsError` for any other."""
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        os.close(fd)
        raise SettingsError(f"the launcher's state folder {name!r} is to belong to it alone: chown and chmod 700 it")
    return fd


def load_keys(state_fd: int) -> Keys:
    """Read the launcher's keys, making them at the first start. Raises `SettingsError` for unusable ones."""
    raw = []
    for name in ("signing.key", "sealing.key"):
        try:
            durable.create_exclusive(state_fd, name, os.urandom(32))
        except FileExistsError:
            pass
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=state_fd)
        try:
            raw.append(os.read(fd, 64))
        finally:
            os.close(fd)
        if len(raw[-1]) != 32:
            raise SettingsError(
                f"the launcher's {name} is {len(raw[-1])} bytes, not 32: restore it, or remove it and enroll again"
            )
    return Keys(signing=SigningKey(raw[0]), sealing=SealingKey(raw[1]))
