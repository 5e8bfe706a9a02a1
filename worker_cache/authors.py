"""Whose code runs on this host, whatever the server says: one TOML file of archive globs and authors' public keys.

    "payments-*" = ["ssh-ed25519 AAAAC3Nza… ann@desk", "<base64 of a key of dagseal key author-new>"]   # any one of these
    "*" = ["ssh-ed25519 AAAAC3Nza… the release engineers"]

The first glob that fits an archive's name (`fnmatch`, case-sensitive) decides, in the file's order. What none fits needs no
author. The file belongs to root or to the agent's account, and nobody else can write it.

Promise: of what the file names, nothing is launched, fetched ahead or handed out here unless one of the keys signed exactly
this archive with this digest (`vocabulary.authorship`). A server that has every key of its own cannot make that.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from integrity.digests import Digest
from integrity.errors import MalformedError, SecurityError, SettingsError
from vocabulary import authorship
from vocabulary.keys import VerifyKey
from vocabulary.logview import LoggedRelease
from worker_cache import guarded

MAX_KEYS = 100
_GLOB = re.compile(r"[A-Za-z0-9_.*?!\[\]-]{1,200}")


class AuthorError(SecurityError):
    """None of the authors that this host trusts with this archive signed these bytes."""

    slug = "author"


@dataclass(frozen=True, slots=True, kw_only=True)
class Authors:
    """Glob and keys, in order."""

    rules: tuple[tuple[str, tuple[VerifyKey, ...]], ...]

    def of(self, archive: str) -> tuple[VerifyKey, ...]:
        """Who is to have signed it: one of these. None: nobody needs to."""
        return next((keys for glob, keys in self.rules if fnmatchcase(archive, glob)), ())

    def require(self, release: LoggedRelease) -> None:
        """Raises `AuthorError`."""
        keys = self.of(release.archive)
        if not keys:
            return
        if release.author is None:
            raise AuthorError(
                f"{release.name} is not signed by an author, and this host asks for one: see dagseal push"
            )
        try:
            _verify(release.author, release.archive, release.digest, keys)
        except SecurityError as error:
            raise AuthorError(f"{release.name} is not signed by an author who is trusted here: {error}") from None

    def permit(self, release: LoggedRelease) -> bool:
        """Whether `require` says nothing against it."""
        try:
            self.require(release)
        except AuthorError:
            return False
        return True


ANYBODY = Authors(rules=())


def load(path: str) -> Authors:
    """Raises `SettingsError`."""
    return parse(guarded.read(path), path)


def parse(data: bytes, path: str) -> Authors:
    """What such a file says. Raises `SettingsError`."""
    try:
        table = tomllib.loads(data.decode())
        rules = tuple((_glob(glob), _keys(glob, entry)) for glob, entry in table.items())
    except (ValueError, MalformedError) as error:
        raise SettingsError(f"the file of authors {path} cannot be used: {error}") from None
    if not rules:
        raise SettingsError(f"the file of authors {path} names no archive")
    return Authors(rules=rules)


@lru_cache(maxsize=65536)
def _verify(signature: bytes, archive: str, digest: Digest, keys: tuple[VerifyKey, ...]) -> None:
    """Once for each: the log is looked through whenever it says more."""
    authorship.verify(signature, archive=archive, digest=digest, keys=keys)


def _glob(glob: str) -> str:
    if not _GLOB.fullmatch(glob):
        raise MalformedError(f"{glob!r} is no glob of archives' names")
    return glob


def _keys(glob: str, entry: object) -> tuple[VerifyKey, ...]:
    if not isinstance(entry, list) or not 0 < len(entry) <= MAX_KEYS or not all(isinstance(one, str) for one in entry):
        raise MalformedError(f"{glob!r} is to have a list of 1 to {MAX_KEYS} keys")
    return tuple(authorship.key_of_text(one) for one in entry)
