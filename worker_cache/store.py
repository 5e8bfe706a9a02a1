"""The cache's folder: blobs under the name of their SHA-512, and the proof that they still have it.

    lock            held by the agent while it runs: one writer
    incoming/       .tmp-* files of fetches under way
    sha512/ab/<hex> whole, verified blobs, mode 0600
    quarantine/     what no longer has its name's digest, kept for whoever looks into it
    log/            the server's log, as far as it is known (`worker_cache.logstore`)

The folder is 0700 and this account's: a task never gets a path into it. A name appears only by rename, after the bytes
were hashed; it is hashed again on every open, on the descriptor that is handed on. Wrong bytes are never named: they are
refused, moved aside, and the next use fetches again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Callable

from integrity import durable
from integrity.digests import Digest
from integrity.errors import DigestMismatchError, NotFoundError, SettingsError

READ_BYTES = 1024 * 1024
INCOMING, BLOBS, QUARANTINE, LOCK, LOG = "incoming", "sha512", "quarantine", "lock", "log"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


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


def hash_fd(fd: int) -> tuple[Digest, int]:
    """SHA-512 and length of everything behind `fd`, read with pread: the descriptor's position stays."""
    hasher, offset = hashlib.sha512(), 0
    while chunk := os.pread(fd, READ_BYTES, offset):
        hasher.update(chunk)
        offset += len(chunk)
    return Digest(hasher.hexdigest()), offset


class Store:
    """The folder, open and locked. Every method may block on the disk; none on the network."""

    def __init__(self, root_fd: int, lock_fd: int) -> None:
        self._root = root_fd
        self._lock = lock_fd
        for name in (INCOMING, BLOBS, QUARANTINE):
            durable.make_folder(root_fd, name)
        self._incoming = os.open(INCOMING, _FOLDER, dir_fd=root_fd)
        self._blobs = os.open(BLOBS, _FOLDER, dir_fd=root_fd)
        self._quarantine = os.open(QUARANTINE, _FOLDER, dir_fd=root_fd)

    @classmethod
    def open(cls, path: str) -> Store:
        """Create or open, lock, and sweep what a crash left unfinished. Raises `SettingsError`."""
        root = open_private(path, create=True)
        lock = try_lock(root)
        if lock is None:
            os.close(root)
            raise SettingsError(f"the cache {path} is in use by another agent: give each agent its own cache_dir")
        store = cls(root, lock)
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

        Raises `NotFoundError` when there is no entry; `DigestMismatchError` when there is a damaged one, which is then in
        `quarantine/`. The caller closes the descriptor.
        """
        try:
            fd = os.open(_path(digest), _FILE, dir_fd=self._blobs)
        except FileNotFoundError:
            raise NotFoundError(f"{digest} is not cached") from None
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise self._damaged(digest, "is a symbolic link") from None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise self._damaged(digest, "is not a file")
            actual, _ = hash_fd(fd)
            if actual != digest:
                raise self._damaged(digest, f"has the bytes of {actual}")
        except BaseException:
            os.close(fd)
            raise
        return fd

    def receive(self) -> Receiver:
        """A place for bytes that arrive."""
        fd, temporary = durable.open_temporary(self._incoming)
        return Receiver(fd, temporary, incoming=self._incoming, publish=self._publish)

    def _publish(self, temporary: str, fd: int, digest: Digest) -> None:
        durable.make_folder(self._blobs, digest.hex[:2])
        folder = os.open(digest.hex[:2], _FOLDER, dir_fd=self._blobs)
        try:
            durable.publish_temporary(self._incoming, temporary, fd, folder, digest.hex)
        finally:
            os.close(folder)

    def _damaged(self, digest: Digest, how: str) -> DigestMismatchError:
        quarantine(self._root, f"{BLOBS}/{_path(digest)}")
        return DigestMismatchError(
            f"the cached entry of {digest} {how}: it was moved to {QUARANTINE}/ and this use is refused; "
            "launch again to fetch it anew, and look into who could write to the cache"
        )


class Receiver:
    """Bytes that arrive, hashed as they are written. `finish` names them only if they are the ones that were asked for."""

    def __init__(self, fd: int, temporary: str, *, incoming: int, publish: Callable[[str, int, Digest], None]) -> None:
        self._fd = fd
        self._temporary = temporary
        self._incoming = incoming
        self._publish = publish
        self._hasher = hashlib.sha512()
        self.size = 0

    def write(self, chunk: bytes) -> None:
        self._hasher.update(chunk)
        self.size += len(chunk)
        durable.write_all(self._fd, [chunk])

    def finish(self, digest: Digest) -> None:
        """Raises `DigestMismatchError`, having named nothing."""
        digest.require(Digest(self._hasher.hexdigest()), "what the server sent")
        self._publish(self._temporary, self._fd, digest)

    def close(self) -> None:
        """Always to be called; removes the temporary name unless `finish` gave it away."""
        os.close(self._fd)
        durable.discard_temporary(self._incoming, self._temporary)


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
