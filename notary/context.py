"""What every job of the notary has in common: keys, policy, clock, journal, the pool, the monitor. Built once, at start."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from integrity.errors import SettingsError
from launcher import kinds
from launcher.accounts import Account
from launcher.kinds import Kind
from launcher.modes import Mode
from launcher.policy import Policy
from notary.asking import Asking
from notary.journal import Journal
from notary.warmpool import WarmPool
from vocabulary import durable
from vocabulary.keys import KeyRing, SealingKey, SigningKey

_RESOLVED_US = 5_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The launcher's own keys; their public halves are enrolled at the API by an administrator."""

    signing: SigningKey
    sealing: SealingKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Shared by all jobs. `now_us` gives microseconds since 1970. `owner` is the account whose user namespace this launcher is
    root of, of a rootless one; `limits` says what holds for each task."""

    policy: Policy
    ring: KeyRing
    keys: Keys
    journal: Journal
    pool: WarmPool
    monitor: Asking
    mode: Mode
    owner: Account | None
    limits: str
    now_us: Callable[[], int]
    _resolved: dict[tuple[str, str], tuple[int, Account]] = field(default_factory=dict)

    def now(self) -> int:
        """Seconds since 1970."""
        return self.now_us() // 1_000_000

    @property
    def privileged(self) -> bool:
        return self.mode != "alone"

    @property
    def empties_bounding_set(self) -> bool:
        return self.mode in ("root", "rootless")

    async def account(self, name: str, purpose: str) -> Account:
        """Check 7, which is the monitor's. Raises `PrivilegeError` naming the rule. A change of accounts or groups is seen
        after 5 s at the latest."""
        at, account = self._resolved.get((name, purpose), (0, None))
        if account is None or not 0 <= self.now_us() - at < _RESOLVED_US:
            account = await self.monitor.account(name, purpose)
            self._resolved[name, purpose] = self.now_us(), account
        return account

    def kind_of_run(self, account: Account, queue: str) -> Kind:
        """Which warm process a task of that queue is forked from."""
        isolation = self.policy.isolation
        return kinds.of_run(self.policy, account, isolation.queues.get(queue, isolation.profile))

    async def kind_of_description(self, variant: int) -> Kind:
        return kinds.of_description(self.policy, await self.account(self.policy.parser, "describe"), variant)


def open_folder(parent_fd: int, name: str) -> int:
    """A private folder of the state directory, made if missing; its descriptor."""
    durable.make_folder(parent_fd, name)
    return open_private(name, dir_fd=parent_fd)


def open_private(name: str, *, dir_fd: int | None = None) -> int:
    """A folder that is ours alone; its descriptor. Raises `SettingsError` for any other."""
    remedy = (
        f"it is to belong to uid {os.geteuid()} alone, whom the folders above let through: chown -R and chmod 700 it"
    )
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except OSError as error:
        raise SettingsError(f"the launcher's state folder {name!r}: {error.strerror}: {remedy}") from None
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        os.close(fd)
        raise SettingsError(f"the launcher's state folder {name!r}: {remedy}")
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
