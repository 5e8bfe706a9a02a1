"""The launcher's one configuration file: TOML, owned by root, checked on the descriptor that is read.

    [trust]        api_keys = ["<base64 of a public Ed25519 key>"]
    [peers]        run = ["dagseal-agent"]   describe = ["dagseal-api"]      # who may ask for what, by account
    [users]        allowed = ["etl"]  allowed_groups = []  banned = []  min_uid = 1000  parser = "dagseal-parser"
                   notary = "dagseal-launcher"             # of a launcher that is root: whom its unprivileged half runs as
                   unsafe_no_expiry_check = false          # true where /etc/shadow cannot be read: a rootless launcher
    [paths]        socket = "/run/dagseal/launcher.sock"   state_dir = "/var/lib/dagseal/launcher"
    [environment]  pass = ["AIRFLOW_CONN_LEGACY"]          # from the launcher's own environment, by name
                   [environment.set]  AIRFLOW__CORE__DEFAULT_TIMEZONE = "utc"
    [isolation]    profile = "standard"  describe = "strict"  queues = {secure = "strict"}    # profiles: launcher/isolation.py
                   readable = ["/srv/lib"]  writable = ["/srv/out"]  tcp_ports = [5432]   # folders; ports are for strict
                   unsafe_no_cgroup_limits = false         # true where the launcher may not make cgroups
    [limits]       as in `Limits` below

Unknown keys are refused, and so is an empty answer to a question that must be answered.
"""

from __future__ import annotations

import dataclasses
import os
import re
import stat
import tomllib
from dataclasses import dataclass
from typing import Any, NoReturn

from integrity.errors import MalformedError, SettingsError
from integrity.fields import from_base64
from launcher.accounts import AccountRules
from launcher.isolation import profile

MAX_FILE_BYTES = 64 * 1024
_KEY_BYTES = 32
DEFAULT_BANNED = ("bin", "daemon", "nobody", "root", "sys")
_ENVIRONMENT_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,250}")
_PASSABLE = ("AIRFLOW_CONN_", "AIRFLOW_VAR_")
# What makes the interpreter or the C library load code from elsewhere: a warm process starts as root with this environment.
_NEVER_SET = ("LD_", "PYTHON", "GCONV_PATH", "LOCPATH", "GLIBC_TUNABLES")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Every limit carries its unit."""

    max_archive_bytes: int = 64 * 1024 * 1024
    max_log_bytes: int = 16 * 1024 * 1024
    log_bytes_per_second: int = 4 * 1024 * 1024
    max_task_frame_bytes: int = 12 * 1024 * 1024
    describe_timeout_seconds: int = 60
    import_timeout_seconds: int = 60
    grant_timeout_seconds: int = 60
    secrets_timeout_seconds: int = 10
    warm_start_timeout_seconds: int = 120
    warm_idle_seconds: int = 3600
    warm_spares: int = 2
    warm_max_tasks: int = 1000
    task_tmp_bytes: int = 1 << 30
    task_memory_bytes: int = 4 << 30
    task_pids: int = 1024
    task_cpu_percent: int | None = None  # of one core


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """Which profile for what, and what the profiles leave open."""

    profile: str
    describe: str
    queues: dict[str, str]
    readable: tuple[str, ...]
    writable: tuple[str, ...]
    tcp_ports: tuple[int, ...]
    cgroup_limits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The file, valid by construction."""

    api_keys: tuple[bytes, ...]
    may_run: frozenset[str]
    may_describe: frozenset[str]
    users: AccountRules
    parser: str
    notary: str  # empty: it keeps the launcher's own account
    socket: str
    state_dir: str
    pass_environment: tuple[str, ...]
    set_environment: dict[str, str]
    isolation: Isolation
    limits: Limits


def load(path: str) -> Policy:
    """Read and check the file. Raises `SettingsError` with what to change."""
    return parse(_read_trusted(path), path)


def parse(text: str, path: str) -> Policy:
    """The rules of the file; `path` is for messages."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: {error}") from None
    section = _Section(document, path)
    trust, peers, users = section.table("trust"), section.table("peers"), section.table("users")
    paths, environment, limits = section.table("paths"), section.table("environment", {}), section.table("limits", {})
    isolation = section.table("isolation", {})
    section.done()

    try:
        api_keys = tuple(from_base64(key, "trust.api_keys", max_bytes=_KEY_BYTES) for key in trust.strings("api_keys"))
    except MalformedError as error:
        raise SettingsError(f"{path}: trust.api_keys: {error}") from None
    for key in api_keys:  # whether it is a good point the notary finds out: no cryptography is loaded here
        if len(key) != _KEY_BYTES:
            raise SettingsError(f"{path}: trust.api_keys: a key is {_KEY_BYTES} bytes, not {len(key)}")
    may_run, may_describe = frozenset(peers.strings("run")), frozenset(peers.strings("describe"))
    parser, notary = users.string("parser"), users.optional("notary")
    policy = Policy(
        api_keys=api_keys,
        may_run=may_run,
        may_describe=may_describe,
        users=AccountRules(
            allowed=frozenset(users.strings("allowed", [])),
            allowed_groups=frozenset(users.strings("allowed_groups", [])),
            banned=frozenset(users.strings("banned", list(DEFAULT_BANNED))),
            reserved=may_run | may_describe | {parser} | ({notary} if notary else set()),
            min_uid=users.integer("min_uid", 1000),
            check_expiry=not users.flag("unsafe_no_expiry_check"),
        ),
        parser=parser,
        notary=notary,
        socket=paths.string("socket"),
        state_dir=paths.string("state_dir"),
        pass_environment=tuple(environment.strings("pass", [])),
        set_environment=environment.strings_by_name("set"),
        isolation=_isolation(isolation),
        limits=Limits(**{f.name: limits.integer(f.name, f.default) for f in dataclasses.fields(Limits)}),
    )
    for name, where in (("socket", policy.socket), ("state_dir", policy.state_dir)):
        if not os.path.isabs(where):
            section.refuse(f"paths.{name} is to be an absolute path, not {where!r}")
    for table in (trust, peers, users, paths, environment, isolation, limits):
        table.done()
    if not policy.users.allowed and not policy.users.allowed_groups:
        section.refuse("users.allowed and users.allowed_groups are both empty: no task could run")
    for name in (*policy.pass_environment, *policy.set_environment):
        if not _ENVIRONMENT_NAME.fullmatch(name):
            section.refuse(f"environment: {name!r} is not a good name")
        if name.startswith(_NEVER_SET):
            section.refuse(
                f"environment.set: {name} would decide what code a process loads before it drops its privileges"
            )
    for name in policy.pass_environment:
        if not name.startswith(_PASSABLE):
            section.refuse(f"environment.pass: only {' and '.join(_PASSABLE)}… may be passed on, not {name}")
    for name in policy.set_environment:
        if name.startswith(_PASSABLE):
            section.refuse(
                f"environment.set: {name} may be a secret, and descriptions see what is set: use environment.pass"
            )
    return policy


def _isolation(section: _Section) -> Isolation:
    found = Isolation(
        profile=section.string("profile", "standard"),
        describe=section.string("describe", "strict"),
        queues=section.strings_by_name("queues"),
        readable=tuple(section.strings("readable", [])),
        writable=tuple(section.strings("writable", [])),
        tcp_ports=tuple(section.integers("tcp_ports")),
        cgroup_limits=not section.flag("unsafe_no_cgroup_limits"),
    )
    for name in (found.profile, found.describe, *found.queues.values()):
        try:
            profile(name)
        except SettingsError as error:
            section.refuse(str(error))
    for path in (*found.readable, *found.writable):
        if not os.path.isabs(path) or os.path.realpath(path) != path or not os.path.isdir(path):
            section.refuse(f"isolation: {path!r} is to be a folder, by its absolute path without symbolic links")
    if "/" in found.writable:
        section.refuse(
            "isolation.writable: '/' takes the meaning from a profile: name the folders, or choose profile minimal"
        )
    return found


class _Section:
    """One TOML table; each key is taken once, by type."""

    def __init__(self, table: dict[str, Any], path: str, prefix: str = "") -> None:
        self._left = dict(table)
        self._path = path
        self._prefix = prefix

    def refuse(self, why: str) -> NoReturn:
        raise SettingsError(f"{self._path}: {why}")

    def _take(self, key: str, default: Any, kind: type, what: str) -> Any:
        value = self._left.pop(key, default)
        if value is None:
            self.refuse(f"{self._prefix}{key} is missing")
        if not isinstance(value, kind) or isinstance(value, bool):
            self.refuse(f"{self._prefix}{key} is to be {what}")
        return value

    def table(self, key: str, default: dict[str, Any] | None = None) -> _Section:
        return _Section(self._take(key, default, dict, "a table"), self._path, f"{self._prefix}{key}.")

    def string(self, key: str, default: str | None = None) -> str:
        value: str = self._take(key, default, str, "text")
        if not value:
            self.refuse(f"{self._prefix}{key} is empty")
        return value

    def optional(self, key: str) -> str:
        return self.string(key) if key in self._left else ""

    def flag(self, key: str) -> bool:
        value = self._left.pop(key, False)
        if not isinstance(value, bool):
            self.refuse(f"{self._prefix}{key} is to be true or false")
        return value

    def integers(self, key: str) -> list[int]:
        value: list[int] = self._take(key, [], list, "a list of ports")
        if not all(type(item) is int and 0 < item < 1 << 16 for item in value):
            self.refuse(f"{self._prefix}{key} is to be a list of ports")
        return value

    def integer(self, key: str, default: Any) -> Any:
        if default is None and key not in self._left:
            return None
        value: int = self._take(key, default, int, "a whole number")
        if value < 1:
            self.refuse(f"{self._prefix}{key} is {value}, the least is 1")
        return value

    def strings(self, key: str, default: list[str] | None = None) -> list[str]:
        value: list[str] = self._take(key, default, list, "a list of texts")
        if not all(isinstance(item, str) and item for item in value):
            self.refuse(f"{self._prefix}{key} is to be a list of texts")
        if default is None and not value:
            self.refuse(f"{self._prefix}{key} is empty")
        return value

    def strings_by_name(self, key: str) -> dict[str, str]:
        value: dict[str, str] = self._take(key, {}, dict, "a table of texts")
        if not all(isinstance(item, str) for item in value.values()):
            self.refuse(f"{self._prefix}{key} is to be a table of texts")
        return value

    def done(self) -> None:
        if self._left:
            self.refuse(f"unknown keys: {', '.join(self._prefix + key for key in sorted(self._left))}")


def _read_trusted(path: str) -> str:
    """The file's text, if nobody but root (or the invoking user) could have written it or any folder above it."""
    path = os.path.abspath(path)
    try:
        # O_NONBLOCK: a FIFO put there must not keep the launcher waiting.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}: the launcher needs its policy file") from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_FILE_BYTES:
            raise SettingsError(f"{path}: is to be a regular file of at most {MAX_FILE_BYTES} bytes")
        _require_trusted(found, path)
        folder = os.path.dirname(path)
        while True:
            _require_trusted(os.lstat(folder), folder)
            if folder == "/":
                break
            folder = os.path.dirname(folder)
        return os.read(fd, MAX_FILE_BYTES).decode("utf-8")
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: is not UTF-8") from None
    finally:
        os.close(fd)


def _require_trusted(found: os.stat_result, path: str) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise SettingsError(f"{path}: belongs to uid {found.st_uid}; it is to belong to root")
    if stat.S_ISLNK(found.st_mode):
        raise SettingsError(f"{path}: is a symbolic link; name the policy file by its real path")
    sticky_folder = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    if found.st_mode & 0o022 and not sticky_folder:
        raise SettingsError(f"{path}: others may write it; run: chmod go-w {path}")
