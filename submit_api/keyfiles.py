"""Keys on disk: one file each, 64 hexadecimal characters and a newline, readable by their owner only."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field

from integrity import durable
from integrity.errors import SettingsError
from integrity.keys import KEY_BYTES, KeyRing, RowKey, SigningKey
from submit_api.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The API's two keys: what it signs with, and what its secrets rest under."""

    signing: SigningKey = field(repr=False)
    rows: RowKey = field(repr=False)

    @property
    def ring(self) -> KeyRing:
        return KeyRing([self.signing.public])


def load(settings: Settings) -> Keys:
    """Read both keys. Raises `SettingsError` for a missing, malformed or readable-by-others file."""
    return Keys(signing=SigningKey(_read(settings.signing_key_file)), rows=RowKey(_read(settings.row_key_file)))


def create(settings: Settings) -> Keys:
    """Make the keys that do not exist yet, then read both. The public key is written beside the signing key."""
    _create(settings.signing_key_file, SigningKey.generate().seed)
    _create(settings.row_key_file, RowKey.generate().raw)
    keys = load(settings)
    _create(settings.verify_key_file, keys.signing.public.raw, mode=0o644)
    return keys


def paths(settings: Settings) -> dict[str, str]:
    """The secret files, by the name that each has in a backup."""
    return {"signing": settings.signing_key_file, "rows": settings.row_key_file}


def take(settings: Settings) -> dict[str, bytes]:
    """The secret files' contents, for a backup that is to hold them."""
    return {name: _read(path).hex().encode() + b"\n" for name, path in paths(settings).items()}


def put(settings: Settings, keys: dict[str, bytes]) -> list[str]:
    """Write the files of a backup, in full or not at all; the paths of those that were not there before.

    Raises `SettingsError` where a file holds another key."""
    made: list[str] = []
    try:
        for name, path in paths(settings).items():
            raw = _raw(keys.get(name, b""), f"the backup's keys/{name}")
            if not os.path.lexists(path):
                _create(path, raw)
                made.append(path)
            elif _read(path) != raw:
                raise SettingsError(f"{path} holds another key than the backup: move it away, or restore without keys")
        public = settings.verify_key_file
        if not os.path.lexists(public):
            _create(public, load(settings).signing.public.raw, mode=0o644)
            made.append(public)
    except BaseException:
        for path in made:
            os.unlink(path)
        raise
    return made


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise SettingsError(f"cannot read the key file {path}: {error.strerror}; run the bootstrap once") from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077:
            raise SettingsError(f"the key file {path} is readable by others: chmod 600 it")
        text = os.read(fd, 2 * KEY_BYTES + 2)
    finally:
        os.close(fd)
    return _raw(text, f"the key file {path}")


def _raw(text: bytes, what: str) -> bytes:
    try:
        raw = bytes.fromhex(text.decode("ascii").removesuffix("\n"))
    except ValueError:
        raw = b""
    if len(raw) != KEY_BYTES:
        raise SettingsError(f"{what} is to hold {2 * KEY_BYTES} hexadecimal characters")
    return raw


def _create(path: str, raw: bytes, *, mode: int = 0o600) -> None:
    folder, name = os.path.split(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        durable.create_exclusive(fd, name, raw.hex().encode() + b"\n", mode=mode)
    except FileExistsError:
        pass
    finally:
        os.close(fd)
