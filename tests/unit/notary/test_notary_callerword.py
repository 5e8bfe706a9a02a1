"""What is left of hearing a caller when a run is over."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import weakref
from collections.abc import Iterator

import pytest

from launcher.channel import Channel
from notary.callerword import CallerWord, Cancelled


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("hangs_up", [False, True])
@pytest.mark.usefixtures("no_collector")
async def test_it_is_gone_without_the_collector(hangs_up: bool) -> None:
    """A launch that leaves something behind until the collector comes makes the launcher grow by how late it comes."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    word = CallerWord(channel)
    await asyncio.sleep(0)
    if hangs_up:
        theirs.close()
        with contextlib.suppress(Cancelled):
            await word.about_the_claim()
    await word.close()
    left = weakref.ref(word)
    del word
    await asyncio.sleep(0)
    assert left() is None
    channel.close()
    theirs.close()
