"""The agent's own key, with which it signs what it asks of the API: one file, 64 hexadecimal characters and a newline, 0600.

    request.key         what the agent signs with
    request.key.new     made for an invitation, until the API has taken it: a join that is tried again uses the same one

Promise: a key is whole and on disk before anybody is told of it, and `adopt` replaces the former in one step.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator

from integrity.errors import SettingsError
from vocabulary import durable
from vocabulary.keys import KEY_BYTES, SigningKey

NEW = ".new"
_KEY = re.compile(rb"[0-9a-f]{64}\n?")


def load(path: str) -> SigningKey:
    """Raises `SettingsError` for a missing or malformed file, or one that others may read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise SettingsError(f"there is no key {path}: join with an invitation, by 'dagseal worker join'") from None
    except OSError as error:
        raise SettingsError(f"the key {path} cannot be read: {error.strerror}") from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077 or found.st_uid != os.geteuid():
            raise SettingsError(f"the key {path} is to be this account's alone: chown and chmod 600 it")
        text = os.read(fd, 2 * KEY_BYTES + 2)
    finally:
        os.close(fd)
    if not _KEY.fullmatch(text):
        raise SettingsError(f"the key {path} is to hold {2 * KEY_BYTES} hexadecimal characters and a newline")
    return SigningKey(bytes.fromhex(text.decode("ascii")))


def prepare(path: str) -> SigningKey:
    """The key to join with: on disk beside `path`, made now unless an earlier join left it."""
    with _folder(path) as (folder, name):
        with contextlib.suppress(FileExistsError):
            durable.create_exclusive(folder, name + NEW, SigningKey.generate().seed.hex().encode() + b"\n")
        return load(path + NEW)


def adopt(path: str) -> None:
    """What was prepared is the key from now on; on disk when this returns."""
    with _folder(path) as (folder, name):
        os.rename(name + NEW, name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)


@contextlib.contextmanager
def _folder(path: str) -> Iterator[tuple[int, str]]:
    folder, name = os.path.split(os.path.abspath(path))
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield fd, name
        finally:
            os.close(fd)
    except OSError as error:
        raise SettingsError(f"the key {path} cannot be kept: {error.strerror}") from None
