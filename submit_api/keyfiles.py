"""Keys on disk: one file each, 64 hexadecimal characters and a newline, readable by their owner only.

The first row key is `rows.key`; what rotations add stands beside it as `rows.000002.key` and so on, and the highest number
encrypts. A key that is being added is `rows.000002.key.new`, whole and on disk, until its name decides that it counts; so
is the next signing key, `signing.key.new`.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from integrity.errors import SettingsError
from submit_api.rowkeys import FIRST, RowKeys
from submit_api.settings import Settings
from vocabulary import durable
from vocabulary.keys import KEY_BYTES, KeyRing, RowKey, SigningKey, VerifyKey

NEW = ".new"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """What the API signs with, and what its secrets rest under."""

    signing: SigningKey = field(repr=False)
    rows: RowKeys = field(repr=False)
    earlier: tuple[VerifyKey, ...] = ()
    ring: KeyRing = field(init=False, repr=False, compare=False)  # made once: every request asks it

    def __post_init__(self) -> None:
        object.__setattr__(self, "ring", KeyRing(list(self.public)))

    @property
    def public(self) -> tuple[VerifyKey, ...]:
        """Of every key that signed here, in order; the last one signs now. The first one's id is the service's name."""
        return (*self.earlier, self.signing.public)


def load(settings: Settings) -> Keys:
    """Read the keys. Raises `SettingsError` for a missing, malformed or readable-by-others file."""
    return Keys(signing=SigningKey(_read(settings.signing_key_file)), rows=RowKeys(lambda: row_keys(settings)))


def create(settings: Settings) -> Keys:
    """Make the keys that do not exist yet, then read all. The public key is written beside the signing key."""
    _create(settings.signing_key_file, SigningKey.generate().seed)
    if not _numbers(settings):
        _create(settings.row_key_file, RowKey.generate().raw)
    keys = load(settings)
    _create(settings.verify_key_file, keys.signing.public.raw, mode=0o644)
    return keys


def row_keys(settings: Settings) -> dict[int, RowKey]:
    """Every row key by its number. Raises `SettingsError` as `load` does."""
    return {number: RowKey(_read(_row_path(settings, number))) for number in _numbers(settings) or [FIRST]}


def prepare_row_key(settings: Settings) -> tuple[int, RowKey]:
    """A new row key, whole and on disk, that does not count yet: then `count_row_key`, or `drop_row_key`."""
    number = max(_numbers(settings), default=0) + 1
    _create(_row_path(settings, number) + NEW, RowKey.generate().raw)
    return number, RowKey(_read(_row_path(settings, number) + NEW))


def prepared_row_keys(settings: Settings) -> dict[int, RowKey]:
    """Those that do not count: what a crash may have left."""
    return {number: RowKey(_read(_row_path(settings, number) + NEW)) for number in _numbers(settings, NEW)}


def count_row_key(settings: Settings, number: int) -> None:
    """From now on the prepared key is one of the ring; on disk when this returns."""
    path = _row_path(settings, number)
    with _folder(path) as (folder, name):
        os.rename(name + NEW, name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)


def drop_row_key(settings: Settings, number: int, *, prepared: bool = False) -> None:
    """Remove a key's file; that it is gone is on disk when this returns."""
    with _folder(_row_path(settings, number)) as (folder, name):
        os.unlink(name + NEW if prepared else name, dir_fd=folder)
        os.fsync(folder)


def prepare_signing_key(settings: Settings) -> SigningKey:
    """The next signing key, whole and on disk, that does not count yet; the one that was prepared before, if one was."""
    path = settings.signing_key_file + NEW
    _create(path, SigningKey.generate().seed)
    return SigningKey(_read(path))


def prepared_signing_key(settings: Settings) -> SigningKey | None:
    path = settings.signing_key_file + NEW
    return SigningKey(_read(path)) if os.path.lexists(path) else None


def count_signing_key(settings: Settings, public: VerifyKey) -> None:
    """The prepared key signs from now on, and the one before is gone; on disk when this returns."""
    with _folder(settings.verify_key_file) as (folder, name):
        durable.overwrite(folder, name, [public.raw.hex().encode() + b"\n"], mode=0o644)
    with _folder(settings.signing_key_file) as (folder, name):
        os.rename(name + NEW, name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)


def _numbers(settings: Settings, suffix: str = "") -> list[int]:
    """The numbers of the row keys that are there."""
    folder, name = os.path.split(settings.row_key_file)
    stem, extension = os.path.splitext(name)
    numbered = re.compile(re.escape(stem) + r"\.([0-9]{6,})" + re.escape(extension + suffix))
    with contextlib.suppress(FileNotFoundError):
        there = os.listdir(folder)
        found = [int(match[1]) for match in map(numbered.fullmatch, there) if match]
        return sorted([FIRST, *found] if name + suffix in there else found)
    return []


def _row_path(settings: Settings, number: int) -> str:
    stem, extension = os.path.splitext(settings.row_key_file)
    return settings.row_key_file if number == FIRST else f"{stem}.{number:06}{extension}"


@contextlib.contextmanager
def _folder(path: str) -> Iterator[tuple[int, str]]:
    """The file's folder, open, and its name there."""
    folder, name = os.path.split(path)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd, name
    finally:
        os.close(fd)


def paths(settings: Settings) -> dict[str, str]:
    """The secret files that are there, by the name that each has in a backup: `signing`, `rows`, `rows.000002`."""
    numbers = _numbers(settings) or [FIRST]
    rows = {"rows" if number == FIRST else f"rows.{number:06}": _row_path(settings, number) for number in numbers}
    return {"signing": settings.signing_key_file, **rows}


def _path_of(settings: Settings, name: str) -> str:
    """Where a backup's file of this name belongs. Raises `SettingsError`."""
    if name == "signing":
        return settings.signing_key_file
    found = re.fullmatch(r"rows(?:\.([0-9]{6,}))?", name)
    if not found:
        raise SettingsError(
            f"the backup has a key {name[:40]!r}, which is none of ours: it is not a backup of this service"
        )
    return _row_path(settings, int(found[1]) if found[1] else FIRST)


def take(settings: Settings) -> dict[str, bytes]:
    """The secret files' contents, for a backup that is to hold them."""
    return {name: _read(path).hex().encode() + b"\n" for name, path in paths(settings).items()}


def put(settings: Settings, keys: dict[str, bytes]) -> list[str]:
    """Write the files of a backup, in full or not at all; the paths of those that were not there before.

    Raises `SettingsError` where a file holds another key."""
    made: list[str] = []
    try:
        for name, text in keys.items():
            path, raw = _path_of(settings, name), _raw(text, f"the backup's keys/{name}")
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
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with _folder(path) as (folder, name), contextlib.suppress(FileExistsError):
        durable.create_exclusive(folder, name, raw.hex().encode() + b"\n", mode=mode)
