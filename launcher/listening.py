"""The launcher's socket file: whose folder it lies in, and that one launcher answers there. Made by the monitor, which may;
heard by the notary."""

from __future__ import annotations

import contextlib
import os
import socket
import stat

from integrity.errors import SettingsError


def bind(path: str) -> socket.socket:
    """Replacing the socket of a launcher that is gone. Nobody can connect before the notary listens; then anyone may, and the
    table says who is heard.

    Raises `SettingsError` when another launcher answers there, or when its folder could be written by others.
    """
    try:
        folder = os.stat(os.path.dirname(path) or ".")
        if folder.st_uid not in (0, os.geteuid()) or folder.st_mode & 0o022:
            raise SettingsError(
                f"{os.path.dirname(path)}: is to belong to the launcher's account, and others may not write it"
            )
        _remove_stale(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(path)
            os.chmod(path, 0o666)  # noqa: S103 - the permission table decides, not the mode
            sock.setblocking(False)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}: cannot bind there") from None
    return sock


def _remove_stale(path: str) -> None:
    """Remove the socket of a launcher that is gone. Raises `SettingsError` when one answers."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                with contextlib.suppress(TimeoutError):
                    probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
                return
        raise SettingsError(f"{path}: another launcher is listening there; stop it first")
