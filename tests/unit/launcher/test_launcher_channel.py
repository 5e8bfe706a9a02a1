"""Frames over a real socket pair: cut, doubled, lying about their length or their descriptors."""

from __future__ import annotations

import array
import asyncio
import os
import resource
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from integrity import messages
from integrity.errors import MalformedError
from launcher.channel import Channel, Credentials, close_all

ANY = messages.MAX_FDS


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Channel, socket.socket]]:
    """Our end, and the raw other end. Every test leaves as many open descriptors as it found."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    before = open_fds()
    yield channel, theirs
    assert open_fds() - before == set()
    channel.close()
    theirs.close()


def open_fds() -> set[str]:
    return {
        f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}"
        for fd in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{fd}")
    }


def send_raw(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])


def nulls(count: int) -> list[int]:
    return [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]


async def test_a_frame_arrives_with_its_fields(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    theirs.sendall(messages.encode("cancel", why="é"))
    received = await channel.receive(max_fds=ANY)
    assert (received.message.kind, received.fds, received.sender) == ("cancel", (), None)
    assert received.message.fields.text("why") == "é"
    received.message.fields.done()


async def test_one_byte_at_a_time_is_the_same_frame(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    waiting = asyncio.create_task(channel.receive(max_fds=ANY))
    for byte in messages.encode("cancel", why="now"):
        assert not waiting.done()
        theirs.sendall(bytes([byte]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert (await waiting).message.kind == "cancel"


async def test_two_frames_in_one_write_are_two(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    theirs.sendall(messages.encode("one") + messages.encode("two"))
    assert [
        (await channel.receive(max_fds=ANY)).message.kind,
        (await channel.receive(max_fds=ANY)).message.kind,
    ] == ["one", "two"]


async def test_descriptors_belong_to_the_frame_that_they_came_with(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    fds = nulls(2)
    send_raw(theirs, messages.encode("one", fds=1) + messages.encode("two"), fds[:1])
    send_raw(theirs, messages.encode("three", fds=1), fds[1:])
    close_all(fds)
    for kind, count in (("one", 1), ("two", 0), ("three", 1)):
        received = await channel.receive(max_fds=ANY)
        assert (received.message.kind, len(received.fds)) == (kind, count)
        assert not any(os.get_inheritable(fd) for fd in received.fds)
        close_all(received.fds)


async def test_a_frame_larger_than_the_socket_goes_both_ways(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    other = Channel(theirs)
    text = "x" * (4 << 20)
    sending = asyncio.create_task(channel.send("log", data=text))
    received = await other.receive(max_fds=ANY)
    await sending
    assert received.message.fields.text("data", max_chars=len(text)) == text


async def test_the_most_descriptors_arrive_in_order(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    other = Channel(theirs)
    pipes = [os.pipe(), os.pipe()]
    sent = [fd for pipe in pipes for fd in pipe]
    await channel.send("fork", pass_fds=sent)
    received = await other.receive(max_fds=ANY)
    assert [os.readlink(f"/proc/self/fd/{fd}") for fd in received.fds] == [
        os.readlink(f"/proc/self/fd/{fd}") for fd in sent
    ]
    close_all([*received.fds, *sent])


@pytest.mark.parametrize(("announced", "brought"), [(0, 1), (1, 0), (1, 2), (2, 1), (4, 3), (0, 4)])
async def test_another_number_of_descriptors_than_announced_is_malformed(
    pair: tuple[Channel, socket.socket], announced: int, brought: int
) -> None:
    channel, theirs = pair
    fds = nulls(brought)
    send_raw(theirs, messages.encode("run", fds=announced), fds)
    close_all(fds)
    with pytest.raises(MalformedError, match=f"announces {announced} descriptors and brings {brought}"):
        await channel.receive(max_fds=ANY)


@pytest.mark.parametrize("count", [6, 12, 13, 60, 253])
@pytest.mark.parametrize("credentials", [False, True])
async def test_too_many_descriptors_are_malformed_and_none_is_kept(
    pair: tuple[Channel, socket.socket], count: int, credentials: bool
) -> None:
    channel, theirs = pair
    if credentials:
        channel.ask_for_credentials()
    fds = nulls(count)
    send_raw(theirs, messages.encode("run", fds=5), fds)
    close_all(fds)
    with pytest.raises(MalformedError, match="more than 5 descriptors"):
        await channel.receive(max_fds=ANY)


async def test_too_many_descriptors_spread_over_the_header_are_malformed(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    fds = nulls(3)
    frame = messages.encode("run", fds=5)
    send_raw(theirs, frame[:1], fds)
    send_raw(theirs, frame[1:2], fds)
    close_all(fds)
    with pytest.raises(MalformedError, match="more than 5 descriptors"):
        await channel.receive(max_fds=ANY)


async def test_descriptors_inside_a_body_are_closed_by_the_kernel(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    fds = nulls(3)
    frame = messages.encode("identity", pad="x" * 100)
    send_raw(theirs, frame[:50], [])
    send_raw(theirs, frame[50:], fds)
    close_all(fds)
    received = await channel.receive(max_fds=ANY)
    assert received.fds == ()


@pytest.mark.parametrize("kept", range(1, 4))
async def test_a_header_that_is_cut_is_the_end(pair: tuple[Channel, socket.socket], kept: int) -> None:
    channel, theirs = pair
    fds = nulls(1)
    send_raw(theirs, messages.encode("run", fds=1)[:kept], fds)
    close_all(fds)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(EOFError):
        await channel.receive(max_fds=ANY)


async def test_a_body_that_is_cut_is_the_end(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    fds = nulls(2)
    send_raw(theirs, messages.encode("run", fds=2)[:-1], fds)
    close_all(fds)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(EOFError, match="inside a frame"):
        await channel.receive(max_fds=ANY)


async def test_the_end_of_the_socket_is_the_end(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(EOFError):
        await channel.receive(max_fds=ANY)


async def test_sending_to_who_is_gone_is_the_end() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    channel = Channel(ours)
    with pytest.raises(EOFError):
        await channel.send("log", data="x")
    channel.close()


@pytest.mark.parametrize("length", [0, messages.MAX_FRAME_BYTES + 1, 2**31, 2**32 - 1])
async def test_an_announced_size_is_checked_before_anything_of_it_is_allocated(
    pair: tuple[Channel, socket.socket], length: int
) -> None:
    channel, theirs = pair
    fds = nulls(1)
    send_raw(theirs, struct.pack(">I", length), fds)
    close_all(fds)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MalformedError, match="is announced"):
        await channel.receive(max_fds=ANY)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024


async def test_an_announced_size_within_the_limit_is_not_allocated_before_it_arrives(
    pair: tuple[Channel, socket.socket],
) -> None:
    channel, theirs = pair
    theirs.sendall(struct.pack(">I", messages.MAX_FRAME_BYTES) + b"{")
    theirs.shutdown(socket.SHUT_WR)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(EOFError):
        await channel.receive(max_fds=ANY)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024


async def test_a_channel_may_have_a_lower_limit() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours, limit=64)
    theirs.sendall(messages.encode("log", data="x" * 64))
    with pytest.raises(MalformedError, match="the limit is 64"):
        await channel.receive(max_fds=ANY)
    channel.close()
    theirs.close()


@pytest.mark.parametrize(
    "body", [b"x", b"{}", b"[]", b'{"kind":"x"}', b'{"fds":0, "kind":"x"}', b'{"fds":5,"kind":"x"}']
)
async def test_a_body_that_is_no_frame_is_malformed(pair: tuple[Channel, socket.socket], body: bytes) -> None:
    channel, theirs = pair
    fds = nulls(2)
    send_raw(theirs, struct.pack(">I", len(body)) + body, fds)
    close_all(fds)
    with pytest.raises(MalformedError):
        await channel.receive(max_fds=ANY)


async def test_a_receive_that_is_given_up_keeps_no_descriptor(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    fds = nulls(2)
    send_raw(theirs, messages.encode("run", fds=2)[:-1], fds)
    close_all(fds)
    waiting = asyncio.create_task(channel.receive(max_fds=ANY))
    for _ in range(5):
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_the_kernel_says_who_sent_a_frame(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    channel.ask_for_credentials()
    child = os.fork()
    if child == 0:
        try:
            theirs.sendall(messages.encode("hello"))
        finally:
            os._exit(0)
    received = await channel.receive(max_fds=ANY)
    os.waitpid(child, 0)
    assert received.sender == Credentials(child, os.getuid(), os.getgid())


async def test_one_frame_from_two_processes_is_malformed(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    channel.ask_for_credentials()
    frame = messages.encode("hello")
    child = os.fork()
    if child == 0:
        try:
            theirs.sendall(frame[:2])
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    theirs.sendall(frame[2:])
    with pytest.raises(MalformedError, match="continued by"):
        await channel.receive(max_fds=ANY)


async def test_the_peer_of_a_connected_socket_is_known(pair: tuple[Channel, socket.socket]) -> None:
    channel, _ = pair
    assert channel.peer == Credentials(os.getpid(), os.getuid(), os.getgid())


async def test_descriptors_that_are_not_wanted_are_closed(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    sent = nulls(1)
    send_raw(theirs, messages.encode("grant", fds=1), sent)
    close_all(sent)
    with pytest.raises(MalformedError, match="1 descriptors came with 'grant', 0 are taken here"):
        await channel.receive()


@pytest.mark.parametrize("late", [False, True])
async def test_a_number_that_is_used_again_is_not_let_go_by_who_waited_on_it_before(late: bool) -> None:
    """A caller's channel is closed while his next word is awaited, and a task's may be the next to have its number."""
    ours, theirs = socket.socketpair()
    number, before = ours.fileno(), Channel(ours)
    waiting = asyncio.create_task(before.receive())
    await asyncio.sleep(0)
    before.close()
    again, other = socket.socketpair()
    assert again.fileno() == number
    if not late:
        waiting.cancel()
    channel = Channel(again)
    received = asyncio.create_task(channel.receive())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    other.sendall(messages.encode("hello"))
    assert (await asyncio.wait_for(received, 5)).message.kind == "hello"
    channel.close()
    for sock in (theirs, other):
        sock.close()
