"""Work that is given up when something else happens first."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def unless(working: Coroutine[Any, Any, T], *happened: asyncio.Event) -> T | None:
    """The result of `working`, or None when one of these was set first; then it is cancelled, and has ended."""
    task = asyncio.ensure_future(working)
    others = [asyncio.ensure_future(event.wait()) for event in happened]
    try:
        await asyncio.wait({task, *others}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for other in others:
            other.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
