"""The descriptors of a `run`, held against what its ticket says: whether Airflow's supervisor stands at its side (ADR-0025).

The ticket is signed; who brings the descriptors is not. So nobody puts a socket of his own under a launch that has none, and
a supervised launch does not begin without one. Whose socket it is cannot be seen: the agent is trusted with that.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Sequence

from integrity.errors import MalformedError


def require_descriptors(fds: Sequence[int], *, supervised: bool) -> None:
    """The archive, and of a supervised launch a connected stream socket of the unix kind. Raises `MalformedError`."""
    expected = 2 if supervised else 1
    if len(fds) != expected:
        kind = "supervised" if supervised else "not supervised"
        raise MalformedError(f"the ticket's launch is {kind}: {expected} descriptors are expected, {len(fds)} came")
    if supervised and not _is_connected_stream(fds[1]):
        raise MalformedError("the supervisor's descriptor is no connected unix stream socket")


def _is_connected_stream(fd: int) -> bool:
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    with socket.socket(fileno=os.dup(fd)) as sock:
        if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
            return False
        try:
            sock.getpeername()
        except OSError:  # it listens, or is not connected
            return False
    return True
