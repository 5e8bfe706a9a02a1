"""Which descriptors a run may bring, by what its ticket says."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from integrity.errors import MalformedError
from notary.supervision import require_descriptors


@pytest.fixture
def kinds(tmp_path: Path) -> Iterator[dict[str, int]]:
    with ExitStack() as stack:
        sockets = {
            "stream": socket.socketpair()[0],
            "datagrams": socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0],
            "packets": socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)[0],
            "unconnected": socket.socket(socket.AF_UNIX),
            "listening": socket.socket(socket.AF_UNIX),
            "tcp": socket.create_server(("127.0.0.1", 0)),
        }
        sockets["listening"].bind(str(tmp_path / "s"))
        sockets["listening"].listen()
        sockets["client of tcp"] = socket.create_connection(sockets["tcp"].getsockname())
        for sock in sockets.values():
            stack.enter_context(sock)
        read, write = os.pipe()
        stack.callback(os.close, read)
        stack.callback(os.close, write)
        file = os.open(tmp_path / "f", os.O_CREAT | os.O_RDWR)
        stack.callback(os.close, file)
        yield {name: sock.fileno() for name, sock in sockets.items()} | {"pipe": read, "file": file}


@pytest.mark.parametrize("count", range(5))
@pytest.mark.parametrize("supervised", [False, True])
def test_exactly_as_many_as_the_ticket_says(kinds: dict[str, int], supervised: bool, count: int) -> None:
    fds = [kinds["file"], *[kinds["stream"]] * 4][:count]
    if count == (2 if supervised else 1):
        require_descriptors(fds, supervised=supervised)
    else:
        with pytest.raises(MalformedError, match=r"descriptors are expected"):
            require_descriptors(fds, supervised=supervised)


def test_what_is_taken_for_a_supervisors_socket(kinds: dict[str, int]) -> None:
    """And looking at it leaves no descriptor behind, and the socket as it was."""
    before = os.listdir("/proc/self/fd")
    for name, fd in kinds.items():
        if name == "stream":
            require_descriptors([kinds["file"], fd], supervised=True)
            continue
        with pytest.raises(MalformedError, match="no connected unix stream socket"):
            require_descriptors([kinds["file"], fd], supervised=True)
    assert os.listdir("/proc/self/fd") == before
