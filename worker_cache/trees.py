"""Releases as folders of files, for local processes that need a path: Airflow's dag processor, an editor, an auditor.

Promise: a folder is made from bytes that were just verified, and looked through again, byte for byte, each time its path is
given out. Its files and folders are the agent's, and nobody can write them (0444, 0555); its name is 128 random bits below a
folder that cannot be listed (0711), so that it is found by those who were told. When an archive changes hands it gets another.
What is left of an earlier agent is removed at start.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections import OrderedDict
from dataclasses import dataclass

from integrity import archives, durable
from integrity.archives import Archive
from integrity.digests import Digest
from integrity.errors import FetchError, SettingsError
from integrity.logview import LoggedArchive, LoggedRelease

_FOLDER_MODE, _FILE_MODE, _ROOT_MODE = 0o555, 0o444, 0o711


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tree:
    """`key`: whose it was when it was made."""

    name: str
    key: tuple[str | None, str | None, int | None]
    size: int


class Trees:
    """The folder, this agent's. Methods may block on the disk."""

    def __init__(self, path: str, *, max_bytes: int) -> None:
        """Raises `SettingsError`."""
        self.path = os.path.abspath(path)
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, int], _Tree] = OrderedDict()
        try:
            os.makedirs(self.path, mode=_ROOT_MODE, exist_ok=True)
            found = os.lstat(self.path)
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise SettingsError(f"the folder {self.path} is to belong to the agent's account alone")
            os.chmod(self.path, _ROOT_MODE)
            for name in os.listdir(self.path):
                self._remove(name)
        except OSError as error:
            raise SettingsError(f"the folder {self.path} cannot be used: {error.strerror}") from None

    def folder(self, release: LoggedRelease, archive: LoggedArchive, fd: int) -> str:
        """The path of this release's folder. `fd` has its verified bytes. Raises `ArchiveError`, `FetchError`."""
        with open(os.dup(fd), "rb") as file:
            file.seek(0)
            data = file.read()
        release.digest.require(Digest.of(data), f"the cached entry of {release.name}")
        found = archives.read(release.archive, data)
        name, key = (release.archive, release.number), (archive.owner, archive.group, archive.mode)
        tree = self._kept.get(name)
        if tree is not None and (tree.key != key or not self._is_whole(tree.name, found)):
            self.forget(*name)
            tree = None
        if tree is None:
            tree = self._make(found, key)
            self._kept[name] = tree
        self._kept.move_to_end(name)
        return os.path.join(self.path, tree.name)

    def forget(self, archive: str, number: int) -> None:
        """Remove it; none is fine."""
        tree = self._kept.pop((archive, number), None)
        if tree is not None:
            self._remove(tree.name)

    def _make(self, archive: Archive, key: tuple[str | None, str | None, int | None]) -> _Tree:
        size = sum(len(member.data) for member in archive.members)
        if size > self._max_bytes:
            raise FetchError(
                f"{archive.name} is {size} bytes as files, the limit is {self._max_bytes}: raise max_trees_mib"
            )
        while self._kept and sum(tree.size for tree in self._kept.values()) + size > self._max_bytes:
            self.forget(*next(iter(self._kept)))
        name = secrets.token_hex(16)
        top = os.path.join(self.path, name)
        try:
            os.mkdir(top, 0o700)
            for member in archive.members:
                path = os.path.join(top, member.name)
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                _write(path, member.data)
            for folder, _, _ in os.walk(top, topdown=False):
                os.chmod(folder, _FOLDER_MODE)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._remove(name)
            raise FetchError(f"the files of {archive.name} cannot be written: {error}; make room") from None
        return _Tree(name=name, key=key, size=size)

    def _is_whole(self, name: str, archive: Archive) -> bool:
        """Whether it has exactly these files, with these bytes."""
        top, wanted = os.path.join(self.path, name), {member.name: member.data for member in archive.members}
        seen = 0
        try:
            for folder, _, files in os.walk(top, onerror=_raise):
                for file in files:
                    path = os.path.join(folder, file)
                    data = wanted.get(os.path.relpath(path, top))
                    if data is None or _read(path, len(data)) != data:
                        return False
                    seen += 1
        except OSError:
            return False
        return seen == len(wanted)

    def _remove(self, name: str) -> None:
        top = os.path.join(self.path, name)
        if os.path.isdir(top) and not os.path.islink(top):
            for folder, _, _ in os.walk(top):
                os.chmod(folder, 0o700)
            shutil.rmtree(top)
        else:
            os.unlink(top)


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        durable.write_all(fd, [data])
        os.fchmod(fd, _FILE_MODE)
    finally:
        os.close(fd)


def _read(path: str, size: int) -> bytes:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        return file.read(size + 1)


def _raise(error: OSError) -> None:
    raise error
