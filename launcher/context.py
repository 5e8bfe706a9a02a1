"""What every job of the launcher has in common: keys, policy, clock, journal, the pool. Built once, at start."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from dataclasses import dataclass, field

from integrity import durable
from integrity.errors import PrivilegeError, SettingsError
from integrity.keys import SealingKey, SigningKey
from launcher import accounts, rootless
from launcher.accounts import Account
from launcher.isolation import Confinement, profile
from launcher.journal import Journal
from launcher.policy import Policy
from launcher.privileges import Identity
from launcher.trees import Trees
from launcher.warmpool import WarmPool
from launcher.warmprocess import Kind

_RESOLVED_US = 5_000_000
# A description imports one archive: more than this is an attack or a mistake.
DESCRIBE_LIMITS = (
    (resource.RLIMIT_CPU, 60),
    (resource.RLIMIT_AS, 2 << 30),
    (resource.RLIMIT_FSIZE, 64 << 20),
    (resource.RLIMIT_NOFILE, 256),
)
NOT_PROMISED_ALONE = (
    "this launcher may become nobody: every task runs as {user}, the account of the launcher itself",
    "not promised: P2's separate users (a task can signal and read what {user} can), P3 between tasks",
    "asking for any other unix user is refused, never skipped",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The launcher's own keys; their public halves are enrolled at the API by an administrator."""

    signing: SigningKey
    sealing: SealingKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Shared by all jobs. `now_us` gives microseconds since 1970. `owner` is the account whose user namespace this launcher is
    root of, of a rootless one."""

    policy: Policy
    keys: Keys
    journal: Journal
    pool: WarmPool
    trees: Trees
    privileged: bool
    owner: Account | None
    now_us: Callable[[], int]
    _resolved: dict[str, tuple[int, Account]] = field(default_factory=dict)

    def now(self) -> int:
        """Seconds since 1970."""
        return self.now_us() // 1_000_000

    def task_account(self, name: str) -> Account:
        """Check 7. Raises `PrivilegeError` naming the rule. A change of accounts or groups is seen after 5 s at the latest."""
        if self.privileged:
            at, account = self._resolved.get(name, (0, None))
            if account is None or not 0 <= self.now_us() - at < _RESOLVED_US:
                account = self._becomable(accounts.resolve(name, self.policy.users, now=self.now()))
                self._resolved[name] = self.now_us(), account
            return account
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
        parser = self._becomable(accounts.look_up(self.policy.parser))
        for peer in sorted(self.policy.may_run | self.policy.may_describe):
            if peer != "root" and accounts.look_up(peer).uid == parser.uid:
                raise SettingsError(
                    f"users.parser {parser.name} and peer {peer} are one account: an import could read its files"
                )
        return parser

    def _becomable(self, account: Account) -> Account:
        """What runs as the launcher's own account could signal it, and enter user namespaces that it owns."""
        if account.uid == os.geteuid():
            raise PrivilegeError(f"unix user {account.name} is the launcher's own account: nothing of a DAG runs as it")
        return account if self.owner is None else rootless.require_within(account)

    def kind_of_run(self, account: Account, queue: str) -> Kind:
        """Which warm process a task of that queue is forked from."""
        isolation = self.policy.isolation
        confinement = Confinement(
            profile=profile(isolation.queues.get(queue, isolation.profile)),
            network=True,
            readable=isolation.readable,
            writable=isolation.writable,
            tcp_ports=isolation.tcp_ports,
            tmp_bytes=self.policy.limits.task_tmp_bytes,
        )
        return Kind(account=account, purpose="run", confinement=confinement)

    def kind_of_description(self, variant: int) -> Kind:
        """Descriptions see nothing of what the operator opened to tasks, and have no network."""
        confinement = Confinement(
            profile=profile(self.policy.isolation.describe),
            network=False,
            readable=(),
            writable=(),
            tcp_ports=(),
            tmp_bytes=self.policy.limits.task_tmp_bytes,
            rlimits=DESCRIBE_LIMITS,
        )
        return Kind(account=self.parser_account(), purpose="describe", confinement=confinement, variant=variant)


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
