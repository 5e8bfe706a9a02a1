"""Wake those who wait for a change of the database. A signal says "look again", nothing more: the database is the truth.

Listen first, then look, then wait: a change between the look and the wait is not missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

QUEUE = "queue"


class Listener:
    """One waiter for one topic."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Until the topic is notified, or so long."""
        try:
            async with asyncio.timeout(max(seconds, 0)):
                await self.event.wait()
        except TimeoutError:
            return


class Signals:
    """Topics are those of `of_offers` and of `of_launch`."""

    def __init__(self) -> None:
        self._listening: dict[str, set[Listener]] = {}
        self._closed = False

    @contextmanager
    def listen(self, topic: str) -> Iterator[Listener]:
        listener = Listener()
        self._listening.setdefault(topic, set()).add(listener)
        try:
            yield listener
        finally:
            listeners = self._listening[topic]
            listeners.discard(listener)
            if not listeners:
                del self._listening[topic]

    def waiting(self, topic: str) -> int:
        """How many listen to a topic."""
        return len(self._listening.get(topic, ()))

    def notify(self, topic: str) -> None:
        for listener in self._listening.get(topic, ()):
            listener.event.set()

    @property
    def closed(self) -> bool:
        """The service stops: waiters answer with what there is."""
        return self._closed

    def close(self) -> None:
        self._closed = True
        for topic in list(self._listening):
            self.notify(topic)


def of_launch(launch_id: str) -> str:
    return f"launch:{launch_id}"


def of_offers(task_instance: str | None) -> str:
    """What there is to take: of all that is not supervised, or of one task instance, for whose launches nobody else waits."""
    return QUEUE if task_instance is None else f"task-instance:{task_instance}"
