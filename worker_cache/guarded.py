"""Files of this host that decide about code: whoever could change one could decide."""

from __future__ import annotations

import os
import stat

from integrity.errors import SettingsError

MAX_BYTES = 1024 * 1024


def read(path: str) -> bytes:
    """A regular file that only root and this account can change, as seen on the open descriptor. Raises `SettingsError`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
                raise SettingsError(f"others can change {path}: chown root it, and chmod go-w")
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise SettingsError(f"{path} is over {MAX_BYTES} bytes")
    return data
