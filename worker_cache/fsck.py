"""Is every cached blob what its name says, and is there nothing else? For `dagseal fsck --cache` and `verify --cache`.

May run while the agent runs: then `incoming/` is left alone, for its files are being written, and so is a damaged log, which
the agent still knows. What is wrong is moved to `quarantine/`, never deleted, and only when repair is asked for. A log that was
moved is followed anew by the next agent: until then nothing tells it what was rolled back.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from integrity.digests import Digest
from integrity.errors import SecurityError
from vocabulary import durable
from worker_cache import logstore, store
from worker_cache.hashing import Hashed, hash_files

_PREFIX = re.compile(r"[0-9a-f]{2}")
_EXPECTED = frozenset({store.INCOMING, store.BLOBS, store.QUARANTINE, store.LOCK, store.LOG})
_EXPECTED_OF_LOG = frozenset({logstore.LEAVES, logstore.CHECKPOINT, logstore.EVIDENCE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`kind` is wrong-bytes, leftover, unexpected, unreadable, or damaged-log; `path` is below the cache's folder. A leftover
    is what a crash may leave, and no damage."""

    kind: str
    path: str
    detail: str
    repaired: bool

    @property
    def is_damage(self) -> bool:
        return self.kind != "leftover"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`blobs` and `size` count what was hashed; `quarantined` what earlier checks have put aside."""

    blobs: int
    size: int
    quarantined: int
    findings: tuple[Finding, ...]


def check(path: str, *, repair: bool = False) -> Report:
    """Read every byte. Raises `SettingsError` when this is not a private folder of this account."""
    root = store.open_private(path, create=False, root_may_read=not repair)
    lock = None
    try:
        if os.fstat(root).st_uid == os.geteuid():  # else root, reading: nothing is created in another account's folder
            lock = store.try_lock(root)
        return _Check(root, repair=repair).run(idle=lock is not None)
    finally:
        if lock is not None:
            os.close(lock)
        os.close(root)


class _Check:
    def __init__(self, root: int, *, repair: bool) -> None:
        self._root = root
        self._repair = repair
        self._findings: list[Finding] = []
        self._blobs = 0
        self._size = 0

    def run(self, *, idle: bool) -> Report:
        for name in self._names(""):
            if name not in _EXPECTED:
                self._aside("unexpected", name, "not a name of the cache")
        if idle:
            for name in self._names(store.INCOMING):
                self._leftover(f"{store.INCOMING}/{name}")
        for found in hash_files(self._root, list(self._named())):
            self._blob(found)
        self._log(idle=idle)
        return Report(
            blobs=self._blobs,
            size=self._size,
            quarantined=len(self._names(store.QUARANTINE)),
            findings=tuple(self._findings),
        )

    def _names(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(f"/proc/self/fd/{self._root}/{folder}"))
        except FileNotFoundError:
            return []
        except NotADirectoryError:
            self._aside("unexpected", folder, "not a folder")
            return []

    def _named(self) -> Iterator[str]:
        """What has a blob's name, in the folder where it belongs."""
        for prefix in self._names(store.BLOBS):
            if not _PREFIX.fullmatch(prefix):
                self._aside("unexpected", f"{store.BLOBS}/{prefix}", "not two hexadecimal characters")
                continue
            for name in self._names(f"{store.BLOBS}/{prefix}"):
                path = f"{store.BLOBS}/{prefix}/{name}"
                if store.HEX.fullmatch(name) and name.startswith(prefix):
                    yield path
                else:
                    self._aside("unexpected", path, "not the name of a blob in this folder")

    def _blob(self, found: Hashed) -> None:
        if found.digest is None:
            if found.trouble:  # else it was put aside by the agent in the meantime
                self._aside("unreadable" if found.is_file else "unexpected", found.path, found.trouble)
            return
        self._blobs += 1
        self._size += found.size
        if found.digest != Digest(found.path.rpartition("/")[2]):
            self._aside("wrong-bytes", found.path, f"its {found.size} bytes are {found.digest}")

    def _log(self, *, idle: bool) -> None:
        for name in self._names(store.LOG):
            temporary = name.startswith(durable.TEMPORARY_PREFIX)
            if temporary and idle:
                self._leftover(f"{store.LOG}/{name}")
            elif not temporary and name not in _EXPECTED_OF_LOG:
                self._aside("unexpected", f"{store.LOG}/{name}", "not a name of the log's folder")
        try:
            folder = os.open(store.LOG, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._root)
        except OSError:
            return  # none yet, or not a folder, which was said
        try:
            logstore.read(folder, None)
        except SecurityError as error:
            found = f"{error}; it is put aside while no agent runs" if self._repair and not idle else str(error)
            self._aside("damaged-log", store.LOG, found, may_repair=idle)
        finally:
            os.close(folder)

    def _leftover(self, path: str) -> None:
        folder, _, name = path.rpartition("/")
        if not name.startswith(durable.TEMPORARY_PREFIX) and not store.is_part(name):
            self._aside("unexpected", path, "not the name of a fetch under way")
            return
        if self._repair:
            os.unlink(path, dir_fd=self._root)
        self._findings.append(
            Finding(kind="leftover", path=path, detail=f"an unfinished file in {folder}/", repaired=self._repair)
        )

    def _aside(self, kind: str, path: str, detail: str, *, may_repair: bool = True) -> None:
        repaired = self._repair and may_repair
        if repaired:
            durable.make_folder(self._root, store.QUARANTINE)
            store.quarantine(self._root, path)
        self._findings.append(Finding(kind=kind, path=path, detail=detail, repaired=repaired))
