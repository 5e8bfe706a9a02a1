"""Which principal a local account is, for whoever asks at the agent's `releases.sock`: one TOML file.

    [airflow]                     # a unix account of this host, by name
    principal = "platform"
    groups = ["etl", "reports"]

An account that is not in it is nobody: it may read what everybody may. The file belongs to root or to the agent's account, and
nobody else can write it. Root is an account like others.
"""

from __future__ import annotations

import pwd
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass

from integrity import names
from integrity.errors import DagsealError, SettingsError
from vocabulary.logview import LoggedArchive
from worker_cache import guarded

_READ = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Who asks. An empty principal is nobody's."""

    principal: str = ""
    groups: frozenset[str] = frozenset()

    def may_read(self, archive: LoggedArchive) -> bool:
        """As unix has it: the first of owner, group and others that fits decides. Without a word of its mode: nobody."""
        if archive.mode is None:
            return False
        shift = 6 if self.principal == archive.owner else 3 if archive.group in self.groups else 0
        return bool(archive.mode >> shift & _READ)


NOBODY = Reader()


def load(path: str) -> Mapping[int, Reader]:
    """By uid. Raises `SettingsError`."""
    try:
        table = tomllib.loads(guarded.read(path).decode())
        return {_uid(account, path): _reader(account, entry) for account, entry in table.items()}
    except ValueError as error:
        raise SettingsError(f"the file of readers {path} cannot be used: {error}") from None


def _uid(account: str, path: str) -> int:
    try:
        return pwd.getpwnam(names.check("unix user", account)).pw_uid
    except (KeyError, DagsealError):
        raise SettingsError(f"{path}: {account!r} is no account of this host") from None


def _reader(account: str, entry: object) -> Reader:
    if not isinstance(entry, dict) or set(entry) - {"principal", "groups"} or "principal" not in entry:
        raise SettingsError(f"readers: [{account}] is to have a principal, may have groups, and nothing else")
    groups = entry.get("groups", [])
    if not isinstance(groups, list):
        raise SettingsError(f"readers: [{account}] groups is to be a list")
    try:
        return Reader(
            principal=names.check("principal", entry["principal"]),
            groups=frozenset(names.check("group", group) for group in groups),
        )
    except DagsealError as error:
        raise SettingsError(f"readers: [{account}]: {error}") from None
