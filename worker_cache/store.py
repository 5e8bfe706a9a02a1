"""The cache's folder: blobs under the name of their SHA-512, and the proof that they still have it.

    lock            held by the agent while it runs: one writer
    incoming/       .tmp-* files of fetches under way; <hex>.part, what is kept of one that was cut
    sha512/ab/<hex> whole, verified blobs, mode 0600
    quarantine/     what no longer has its name's digest, kept for whoever looks into it
    log/            the server's log, as far as it is known (`worker_cache.logstore`)

The folder is 0700 and this account's: a task never gets a path into it. A name appears only by rename, after the bytes
were hashed; it is hashed again on every open, on the descriptor that is handed on. Wrong bytes are never named: they are
refused, moved aside, and the next use fetches again.

Entries are not synced (docs/adr/0020-the-cache-is-not-synced.md): when the host goes down it may lose some. So wrong bytes in
a file that nobody changed since the host was started are `LostError`, to be fetched again; in any other they are damage.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import suppress

from integrity.digests import Digest
from integrity.errors import DigestMismatchError, NotFoundError, SettingsError
from vocabulary import durable
from worker_cache.receiving import PART, Receiver

READ_BYTES = 1024 * 1024
FIRST_BYTES = 16 * 1024  # to have room for a megabyte takes longer than to hash a small file
INCOMING, BLOBS, QUARANTINE, LOCK, LOG = "incoming", "sha512", "quarantine", "lock", "log"
HEX = re.compile(r"[0-9a-f]{128}")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class LostError(NotFoundError):
    """The host lost the entry when it went down: fetch it again."""


def open_private(path: str, *, create: bool, root_may_read: bool = False) -> int:
    """A descriptor of a folder that is its account's alone: this one's, or any for root who only reads. Raises
    `SettingsError`."""
    try:
        if create:
            _make_durably(os.path.abspath(path))
        fd = os.open(path, _FOLDER)
    except OSError as error:
        raise SettingsError(f"the folder {path} cannot be used: {error.strerror}") from None
    found = os.fstat(fd)
    ours = found.st_uid == os.geteuid() or (root_may_read and os.geteuid() == 0)
    if not ours or stat.S_IMODE(found.st_mode) & 0o077:
        os.close(fd)
        raise SettingsError(
            f"the folder {path} is to belong to this account with mode 0700 (chown uid {os.geteuid()}, chmod 700): "
            f"it has uid {found.st_uid} and mode {stat.S_IMODE(found.st_mode):04o}"
        )
    return fd


def _make_durably(path: str) -> None:
    """What is kept in the folder outlives a power loss only if the folder's own name does."""
    parent, name = os.path.split(path)
    os.makedirs(parent, mode=0o700, exist_ok=True)
    fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        durable.make_folder(fd, name)
    finally:
        os.close(fd)


def hash_fd(fd: int, size: int = -1) -> tuple[Digest, int]:
    """SHA-512 and length of everything behind `fd`, read with pread: the descriptor's position stays. With `size` no more than
    that is looked for."""
    chunk = os.pread(fd, FIRST_BYTES, 0)
    hasher, offset = hashlib.sha512(chunk), len(chunk)
    while chunk and offset != size:
        chunk = os.pread(fd, READ_BYTES if offset >= FIRST_BYTES else FIRST_BYTES, offset)
        hasher.update(chunk)
        offset += len(chunk)
    return Digest(hasher.hexdigest()), offset


class Store:
    """The folder, open and locked. Every method may block on the disk; none on the network."""

    def __init__(self, root_fd: int, lock_fd: int, booted_at: float) -> None:
        self._root = root_fd
        self._lock = lock_fd
        self._booted_at = booted_at
        durable.make_folder(root_fd, INCOMING, BLOBS, QUARANTINE)
        self._incoming = os.open(INCOMING, _FOLDER, dir_fd=root_fd)
        self._blobs = os.open(BLOBS, _FOLDER, dir_fd=root_fd)
        self._quarantine = os.open(QUARANTINE, _FOLDER, dir_fd=root_fd)

    @classmethod
    def open(cls, path: str, *, booted_at: float | None = None) -> Store:
        """Create or open, lock, and sweep what a crash left unfinished and cannot be gone on with. `booted_at`: when this host
        was started, by its clock of now. Raises `SettingsError`."""
        root = open_private(path, create=True)
        lock = try_lock(root)
        if lock is None:
            os.close(root)
            raise SettingsError(f"the cache {path} is in use by another agent: give each agent its own cache_dir")
        if booted_at is None:
            booted_at = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        store = cls(root, lock, booted_at)
        durable.sweep(store._incoming)
        return store

    def close(self) -> None:
        for fd in (self._quarantine, self._blobs, self._incoming, self._lock, self._root):
            os.close(fd)

    def log_folder(self) -> int:
        """A descriptor of `log/`, made where it is not there. The caller closes it."""
        durable.make_folder(self._root, LOG)
        return os.open(LOG, _FOLDER, dir_fd=self._root)

    def open_verified(self, digest: Digest) -> int:
        """A read-only descriptor whose bytes, all of them, were just hashed.

        Raises `NotFoundError` when there is no entry; `DigestMismatchError` when there is a damaged one, or `LostError`: it is
        then in `quarantine/`. The caller closes the descriptor.
        """
        fd = self.open_unverified(digest)
        try:
            actual, _ = hash_fd(fd)
            if actual != digest:
                raise self.set_aside(digest, fd, f"has the bytes of {actual}")
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EIO:
                raise
            raise self.set_aside(digest, None, "cannot be read from the disk") from None
        except BaseException:
            os.close(fd)
            raise
        return fd

    def open_unverified(self, digest: Digest) -> int:
        """For who hashes it in pieces. Raises as `open_verified` does, but looks at no byte."""
        try:
            fd = os.open(_path(digest), FILE, dir_fd=self._blobs)
        except FileNotFoundError:
            raise NotFoundError(f"{digest} is not cached") from None
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EIO):
                raise
            raise self.set_aside(digest, None, "is a symbolic link, or cannot be read") from None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise self.set_aside(digest, None, "is not a file")
        except BaseException:
            os.close(fd)
            raise
        return fd

    def set_aside(self, digest: Digest, fd: int | None, how: str) -> DigestMismatchError | LostError:
        """Into `quarantine/`, unless a good one has taken the place of the file behind `fd` meanwhile; the error to raise."""
        lost = fd is not None and os.fstat(fd).st_ctime < self._booted_at
        with suppress(FileNotFoundError):  # by another who found it out at the same time
            there = os.stat(_path(digest), dir_fd=self._blobs, follow_symlinks=False)
            if fd is None or os.path.samestat(there, os.fstat(fd)):
                quarantine(self._root, f"{BLOBS}/{_path(digest)}")
        if lost:
            return LostError(f"the cached entry of {digest} {how}: it was lost when the host went down")
        return DigestMismatchError(
            f"the cached entry of {digest} {how}: it was moved to {QUARANTINE}/ and this use is refused; "
            "launch again to fetch it anew, and look into who could write to the cache"
        )

    def receive(self) -> Receiver:
        """A place for bytes that arrive."""
        fd, temporary = durable.open_temporary(self._incoming)
        return Receiver(fd, temporary, incoming=self._incoming, publish=self._publish)

    def resume(self, digest: Digest) -> Receiver:
        """A place for the bytes of this digest, maybe with some of them: `Receiver.rehash` first. One at a time."""
        name = digest.hex + PART
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._incoming)
        return Receiver(fd, name, incoming=self._incoming, publish=self._publish)

    def _publish(self, temporary: str, fd: int, digest: Digest) -> None:
        target = _path(digest)
        try:
            os.rename(temporary, target, src_dir_fd=self._incoming, dst_dir_fd=self._blobs)
        except FileNotFoundError:
            with suppress(FileExistsError):
                os.mkdir(digest.hex[:2], 0o700, dir_fd=self._blobs)
            os.rename(temporary, target, src_dir_fd=self._incoming, dst_dir_fd=self._blobs)

    def remove(self, digest: Digest) -> None:
        """No entry is fine. Who has a descriptor of it keeps its bytes."""
        durable.discard_temporary(self._blobs, _path(digest))

    def remove_part(self, digest: Digest) -> None:
        durable.discard_temporary(self._incoming, digest.hex + PART)

    def parts(self) -> Iterator[tuple[Digest, int]]:
        """What is kept of fetches that were cut, with its length."""
        for name, found in _files(self._incoming):
            if is_part(name):
                yield Digest(name.removesuffix(PART)), found.st_size

    def entries(self) -> Iterator[tuple[Digest, int, float]]:
        """Every entry with its length, and when it was last used or fetched. Hashes nothing."""
        for prefix in os.listdir(self._blobs):
            try:
                folder = os.open(prefix, _FOLDER, dir_fd=self._blobs)
            except OSError:
                continue  # `fsck` names it
            try:
                for name, found in _files(folder):
                    if HEX.fullmatch(name) and name.startswith(prefix):
                        yield Digest(name), found.st_size, found.st_mtime
            finally:
                os.close(folder)


def try_lock(root_fd: int) -> int | None:
    """The cache's lock, or None while an agent holds it."""
    fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=root_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def quarantine(root_fd: int, path: str) -> str:
    """Move an entry aside under a free name; the name. Never replaces what is there already."""
    wanted = path.replace("/", "_")
    taken = set(os.listdir(f"/proc/self/fd/{root_fd}/{QUARANTINE}"))
    name = next(n for n in (wanted, *(f"{wanted}.{i}" for i in range(1, len(taken) + 2))) if n not in taken)
    os.rename(path, f"{QUARANTINE}/{name}", src_dir_fd=root_fd, dst_dir_fd=root_fd)
    return name


def _path(digest: Digest) -> str:
    return f"{digest.hex[:2]}/{digest.hex}"


def is_part(name: str) -> bool:
    return name.endswith(PART) and HEX.fullmatch(name.removesuffix(PART)) is not None


def _files(folder: int) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as found:
        for entry in found:
            with suppress(FileNotFoundError):
                yield entry.name, entry.stat(follow_symlinks=False)
