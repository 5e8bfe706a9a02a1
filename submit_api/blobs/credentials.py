"""Credentials of a bucket from a private file, in the form of AWS's own `~/.aws/credentials`, section `default`.

Promise: a file that others can read is refused; no error shows a value. It is read again while the service runs, so other
credentials need no restart.
"""

from __future__ import annotations

import configparser
import os
import stat
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from integrity.errors import SettingsError

if TYPE_CHECKING:
    from obstore.store import S3Credential

# obstore takes new ones when less than five minutes are left: so they are read again once a minute.
_GOOD_FOR = timedelta(minutes=6)
_MAX_BYTES = 16 * 1024


class FileCredentials:
    """Called by obstore, whenever it needs them."""

    def __init__(self, path: str, now: Callable[[], float] = time.time) -> None:
        self._path, self._now = path, now

    def __call__(self) -> S3Credential:
        """Raises `SettingsError`."""
        found = read(self._path)
        until = datetime.fromtimestamp(self._now(), UTC) + _GOOD_FOR
        return {
            "access_key_id": found["aws_access_key_id"],
            "secret_access_key": found["aws_secret_access_key"],
            "token": found.get("aws_session_token"),
            "expires_at": until,
        }


def read(path: str) -> dict[str, str]:
    """The section's keys. Raises `SettingsError`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise SettingsError(f"cannot read blobs.credentials_file {path}: {error.strerror}") from None
    with os.fdopen(fd, "rb") as file:
        held = os.fstat(fd)
        if not stat.S_ISREG(held.st_mode) or held.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise SettingsError(f"blobs.credentials_file {path} is readable by others: chmod 600 it")
        text = file.read(_MAX_BYTES)
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(text.decode())
        found = dict(parser["default"])
    except (configparser.Error, UnicodeDecodeError, KeyError):
        found = {}
    if not found.get("aws_access_key_id") or not found.get("aws_secret_access_key"):
        raise SettingsError(
            f"blobs.credentials_file {path} is to have [default] with aws_access_key_id and aws_secret_access_key"
        )
    return found
