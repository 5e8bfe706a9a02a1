"""What the caller says while its run lasts: heard at once, beside whatever the run waits for.

A caller may say `grant` or `deny` once, about the claim, and `cancel` at any time; hanging up, or a second `cancel`, is one
without grace. Any other word ends the run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from integrity.errors import MalformedError
from integrity.messages import Message
from launcher.channel import Channel

T = TypeVar("T")
MAX_GRACE_SECONDS = 60


class Cancelled(Exception):
    """The caller asked for it, or went away. `grace_seconds`: what the task may have to end by itself."""

    def __init__(self, why: str, grace_seconds: int = 0) -> None:
        super().__init__(why)
        self.grace_seconds = grace_seconds


class CallerWord:
    """The next word of this caller. Nobody else receives from it until `close`."""

    def __init__(self, caller: Channel) -> None:
        self._caller = caller
        self._word = asyncio.create_task(self._receive())

    async def _receive(self) -> Message:
        return (await self._caller.receive()).message

    async def about_the_claim(self) -> Message:
        """`grant` or `deny`. Raises `Cancelled` for `cancel` and when the caller is gone."""
        try:
            message = await self._word
        except EOFError:
            raise Cancelled("the agent went away") from None
        self._word = asyncio.create_task(self._receive())
        if message.kind == "cancel":
            raise _cancelled(message)
        if message.kind not in ("grant", "deny"):
            raise MalformedError(f"{message.kind!r} is not permitted while a claim is open")
        return message

    async def unless_cancelled(self, work: Awaitable[T]) -> T:
        """`work`, unless the caller says `cancel` or goes away first. Any other word ends the run too."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self._word}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            try:
                message = self._word.result()
            except EOFError:
                raise Cancelled("the agent went away") from None
            if message.kind == "cancel":
                self._word = asyncio.create_task(self._receive())
                raise _cancelled(message)
            raise MalformedError(f"{message.kind!r} is not permitted while the task runs")
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        """Hear no more, for good. The task that heard knows us: only without it what it held is given back at once."""
        self._word.cancel()
        await asyncio.gather(self._word, return_exceptions=True)
        del self._word


def _cancelled(message: Message) -> Cancelled:
    """Raises `MalformedError` for a grace that nobody may ask for."""
    grace_seconds = message.fields.integer("grace_seconds")
    message.fields.done()
    if grace_seconds > MAX_GRACE_SECONDS:
        raise MalformedError(f"cancel: a grace of {grace_seconds} s, the most is {MAX_GRACE_SECONDS}")
    return Cancelled("cancelled by request", grace_seconds)
