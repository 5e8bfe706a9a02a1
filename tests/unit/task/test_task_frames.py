"""Frames with descriptors, on a real socket pair."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator

import pytest

from integrity import messages
from integrity.errors import MalformedError
from launcher.task import frames


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def send_with(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_frame_arrives_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    frames.send(pair[0], "ready", task_digest="x")
    message, fds = frames.receive(pair[1])
    assert (message.kind, message.fields.text("task_digest"), fds) == ("ready", "x", [])


def test_descriptors_arrive_beside_it_and_are_not_inherited(pair: tuple[socket.socket, socket.socket]) -> None:
    read, write = os.pipe()
    send_with(pair[0], messages.encode("fork", fds=2), [read, write])
    message, fds = frames.receive(pair[1], fds=2)
    os.write(fds[1], b"through")
    assert message.kind == "fork" and os.read(read, 10) == b"through"
    assert not any(os.get_inheritable(fd) for fd in fds)
    frames.close_all([read, write, *fds])


@pytest.mark.parametrize(("announced", "brought", "expected"), [(2, 1, 2), (1, 2, 2), (2, 2, 0), (0, 0, 4)])
def test_a_wrong_number_of_descriptors_is_refused_and_they_are_closed(
    pair: tuple[socket.socket, socket.socket], announced: int, brought: int, expected: int
) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    before = open_fds()
    data = messages.encode("fork", fds=announced)
    if brought:
        send_with(pair[0], data, [null] * brought)
    else:
        pair[0].sendall(data)
    with pytest.raises(MalformedError, match="descriptors"):
        frames.receive(pair[1], fds=expected)
    assert open_fds() == before
    os.close(null)


def test_the_end_is_told_from_a_frame_cut_short(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].sendall(messages.encode("job")[:-1])
    pair[0].close()
    with pytest.raises(EOFError):
        frames.receive(pair[1])


def test_an_oversized_frame_is_refused_before_it_is_read(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].sendall((messages.MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(MalformedError, match="limit"):
        frames.receive(pair[1])


def test_sending_to_nobody_is_the_end(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].close()
    with pytest.raises(EOFError):
        frames.send(pair[0], "hello")
