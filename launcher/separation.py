"""The fork that makes two of the launcher: a monitor, which keeps its privileges, and the notary, which drops.

Promise: the notary has no descriptor of the monitor's but those it is meant to have, has given up its privileges and tried to
get them back, and only then imports what reads tickets, archives and words of tasks, and loads a key.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sys
from dataclasses import dataclass
from typing import NoReturn

from integrity.errors import DagsealError
from launcher import privileges
from launcher.accounts import Account
from launcher.modes import Mode
from launcher.policy import Policy
from launcher.privileges import Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What was made and found out before the fork, and both halves know. `notary` is whom that half becomes, `door` where
    callers come from: the listener, or stdin of the launcher that this `caller` (its uid) started."""

    policy: Policy
    mode: Mode
    owner: Account | None
    notary: Identity | None
    trees: str
    limits: str
    door: socket.socket
    caller: int | None


def fork_notary(place: Place) -> tuple[int, socket.socket]:
    """Its pid, and our end of the socket pair. The door is the notary's from now on."""
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _be_notary(place, theirs, parent)
    theirs.close()
    place.door.close()
    return pid, ours


def _be_notary(place: Place, monitor: socket.socket, parent: int) -> NoReturn:
    """In the fork. Drops, proves it, and only then imports what reads tickets."""
    code = 2
    try:
        close_all_but(0, 1, 2, monitor.fileno(), place.door.fileno())
        privileges.empty_bounding_set()
        if place.notary is None:
            privileges.shed_capabilities()
        else:
            with contextlib.suppress(ValueError):  # so that it can keep its memory out of swap, where this may be given
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            privileges.drop(place.notary)
        privileges.harden(parent=parent)
        from notary import packages

        packages.add_to_path()
        from notary import main

        main.serve(place, monitor)
        code = 0
    except DagsealError as error:
        print(f"dagseal launcher: {error}", file=sys.stderr, flush=True)
    except BaseException:
        code = 1
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def close_all_but(*kept: int) -> None:
    """Of the descriptors that this process has. Locks on what is closed stay with the parent, whose they are."""
    at = 0
    for fd in sorted(kept):
        if at < fd:  # an empty range would be taken for all there are
            os.closerange(at, fd)
        at = fd + 1
    os.closerange(at, os.sysconf("SC_OPEN_MAX"))
