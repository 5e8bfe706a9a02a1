"""What a task sees of the host's files: its own /proc, its own empty folders for temporary files (mount_namespaces(7)).

Made by the task in a mount namespace of its own, with no privilege but that over its user namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Collection

from integrity.errors import PrivilegeError

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
PRIVATE_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - these are replaced, not used

_libc = ctypes.CDLL(None, use_errno=True)


def private(*, keep: Collection[str], writable: Collection[str], tmp_bytes: int, only_own_pids: bool) -> None:
    """Own /proc, own empty folders for temporary files of at most `tmp_bytes` each; what of `keep` (read-only) and `writable`
    lies below those stays where it was. Raises `PrivilegeError` when a step cannot be done."""
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    below = [
        (path, _hold(path))
        for path in sorted({*keep, *writable})
        if any(path.startswith(f"{folder}/") for folder in PRIVATE_FOLDERS)
    ]
    room = f"size={tmp_bytes},nr_inodes={tmp_bytes >> 12},mode=0700"
    for folder in PRIVATE_FOLDERS:
        if os.path.isdir(folder) and folder not in writable:
            _mount("tmpfs", folder, "tmpfs", _MS_NOSUID | _MS_NODEV, room)
    for path, fd in below:
        with contextlib.suppress(OSError):  # the mount says why
            os.makedirs(path, mode=0o700, exist_ok=True)
        _mount(f"/proc/self/fd/{fd}", path, None, _MS_BIND | _MS_REC)
        if path not in writable:
            noexec = os.fstatvfs(fd).f_flag & _MS_NOEXEC  # the host's is locked in here (mount_namespaces(7))
            _mount(None, path, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV | noexec)
        os.close(fd)
    # No hidepid: all there is to see is the task's own, and what it starts has to find it.
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "subset=pid" if only_own_pids else None)


def _hold(path: str) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise PrivilegeError(f"{path} is to stay in reach but cannot be opened: {error.strerror}") from None


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [word.encode() if word is not None else None for word in (source, target, kind, options)]
    if _libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]) != 0:
        raise PrivilegeError(
            f"mount on {target} failed: {os.strerror(ctypes.get_errno())}; run dagseal doctor, or choose profile minimal"
        )
