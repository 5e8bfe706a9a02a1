"""Releases, and sets of them, as folders of files, for local processes that need a path: Airflow's dag processor, an auditor.

Promise: a folder is made from bytes that were just verified, and looked through again, byte for byte, each time its path is
given out. Its files and folders are the agent's, and nobody can write them (0444, 0555); its name is 128 random bits below a
folder that cannot be listed (0711), so that it is found by those who were told. When an archive changes hands it gets another.
What is left of an earlier agent is removed at start, and what others removed is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from integrity.digests import Digest
from integrity.errors import FetchError, SettingsError
from vocabulary import archives, durable
from vocabulary.logview import LoggedArchive, LoggedRelease

_FOLDER_MODE, _FILE_MODE, _ROOT_MODE = 0o555, 0o444, 0o711

Hands = tuple[tuple[str | None, str | None, int | None], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a folder is to hold. `name`: of the release or the set; `hands`: owner, group and mode of each archive."""

    name: str
    hands: Hands
    files: Mapping[str, Digest]
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tree:
    folder: str
    hands: Hands
    size: int


class Trees:
    """The folder, this agent's. Methods may block on the disk, and may be called from any thread."""

    def __init__(self, path: str, *, max_bytes: int) -> None:
        """Raises `SettingsError`."""
        self.path = os.path.abspath(path)
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, _Tree] = OrderedDict()
        self._lock = threading.RLock()
        try:
            self._own()
            for name in os.listdir(self.path):
                self._remove(name)
        except OSError as error:
            raise SettingsError(f"the folder {self.path} cannot be used: {error.strerror}") from None

    def folder(self, release: LoggedRelease, archive: LoggedArchive, fd: int) -> str:
        """The path of this release's folder. `fd` has its verified bytes. Raises `ArchiveError`, `FetchError`."""
        data = read_all(fd)
        release.digest.require(Digest.of(data), f"the cached entry of {release.name}")
        members = archives.read(release.archive, data).members
        wanted = Wanted(
            name=release.name,
            hands=(hands_of(archive),),
            files={member.name: Digest.of(member.data) for member in members},
            size=sum(len(member.data) for member in members),
        )
        with self._lock:
            path = self.find(wanted)
            if path is None:
                with self.begin(wanted) as draft:
                    for member in members:
                        draft.add(member.name, member.data)
                    path = draft.publish()
        return path

    def find(self, wanted: Wanted) -> str | None:
        """The path of the folder that has exactly this, if there is one; what was changed, or is of other hands, is removed."""
        with self._lock:
            tree = self._kept.get(wanted.name)
            if tree is None:
                return None
            if tree.hands != wanted.hands or not self._is_whole(tree.folder, wanted.files):
                self.forget(wanted.name)
                return None
            self._kept.move_to_end(wanted.name)
            return os.path.join(self.path, tree.folder)

    def begin(self, wanted: Wanted) -> Draft:
        """Make one: `add` each file, then `publish`. Raises `FetchError`, `SettingsError`."""
        if wanted.size > self._max_bytes:
            raise FetchError(
                f"{wanted.name} is {wanted.size} bytes as files, the limit is {self._max_bytes}: raise max_trees_mib"
            )
        with self._lock:
            self._make_room(wanted.size)
        folder = secrets.token_hex(16)
        try:
            self._own()  # somebody who cleans up may have removed it
            os.mkdir(os.path.join(self.path, folder), 0o700)
        except OSError as error:
            raise FetchError(f"the files of {wanted.name} cannot be written: {error}; make room") from None
        return Draft(self, wanted, folder)

    def keep(self, wanted: Wanted, folder: str) -> str:
        """A draft that is whole has this path from now on."""
        with self._lock:
            self.forget(wanted.name)
            self._make_room(wanted.size)
            self._kept[wanted.name] = _Tree(folder=folder, hands=wanted.hands, size=wanted.size)
        return os.path.join(self.path, folder)

    def forget(self, name: str) -> None:
        """Remove it; none is fine."""
        with self._lock:
            tree = self._kept.pop(name, None)
            if tree is not None:
                self._remove(tree.folder)

    def drop(self, folder: str) -> None:
        """A draft that will not be whole."""
        with contextlib.suppress(OSError):
            self._remove(folder)

    def _own(self) -> None:
        """See that the folder of all is there, and the agent's. Raises `SettingsError`, `OSError`."""
        os.makedirs(self.path, mode=_ROOT_MODE, exist_ok=True)
        found = os.lstat(self.path)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise SettingsError(f"the folder {self.path} is to belong to the agent's account alone")
        os.chmod(self.path, _ROOT_MODE)

    def _make_room(self, size: int) -> None:
        while self._kept and sum(tree.size for tree in self._kept.values()) + size > self._max_bytes:
            self.forget(next(iter(self._kept)))

    def _is_whole(self, folder: str, files: Mapping[str, Digest]) -> bool:
        """Whether it has exactly these files, with these bytes."""
        top, seen = os.path.join(self.path, folder), 0
        try:
            for here, _, found in os.walk(top, onerror=_raise):
                for file in found:
                    path = os.path.join(here, file)
                    wanted = files.get(os.path.relpath(path, top))
                    if wanted is None or _digest(path, self._max_bytes) != wanted:
                        return False
                    seen += 1
        except OSError:
            return False
        return seen == len(files)

    def _remove(self, name: str) -> None:
        """It may be gone already."""
        top = os.path.join(self.path, name)
        with contextlib.suppress(FileNotFoundError):
            if os.path.isdir(top) and not os.path.islink(top):
                for folder, _, _ in os.walk(top):
                    os.chmod(folder, 0o700)
                shutil.rmtree(top)
            else:
                os.unlink(top)


@dataclass(slots=True)
class Draft:
    """A folder that nobody was told of yet. Without `publish` it is removed."""

    _trees: Trees
    _wanted: Wanted
    _folder: str
    _published: bool = field(default=False)

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._published:
            self._trees.drop(self._folder)

    def add(self, name: str, data: bytes) -> None:
        """Raises `DigestMismatchError` for other bytes than are wanted, `FetchError`."""
        self._wanted.files[name].require(Digest.of(data), f"the file {name} of {self._wanted.name}")
        path = os.path.join(self._trees.path, self._folder, name)
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            _write(path, data)
        except OSError as error:
            raise FetchError(f"the files of {self._wanted.name} cannot be written: {error}; make room") from None

    def publish(self) -> str:
        """Its path, from now on. Raises `FetchError`."""
        try:
            for folder, _, _ in os.walk(os.path.join(self._trees.path, self._folder), topdown=False):
                os.chmod(folder, _FOLDER_MODE)
        except OSError as error:
            raise FetchError(f"the files of {self._wanted.name} cannot be kept: {error}") from None
        self._published = True
        return self._trees.keep(self._wanted, self._folder)


def hands_of(archive: LoggedArchive) -> tuple[str | None, str | None, int | None]:
    return archive.owner, archive.group, archive.mode


def read_all(fd: int) -> bytes:
    """From the beginning; the descriptor stays the caller's."""
    with open(os.dup(fd), "rb") as file:
        file.seek(0)
        return file.read()


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        durable.write_all(fd, [data])
        os.fchmod(fd, _FILE_MODE)
    finally:
        os.close(fd)


def _digest(path: str, most: int) -> Digest | None:
    """None for what we did not write."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size > most:
            return None
        return Digest(hashlib.file_digest(file, "sha512").hexdigest())


def _raise(error: OSError) -> None:
    raise error
