"""Moves this process's clock forward, so that a description that depends on the time is found out.

Promise: after `shift`, `datetime.now`, `utcnow`, `today` and the readers of `time` give a later time in this process, in
whatever module they are called. Only for a process that describes one archive and ends: it changes C types in place.
"""

from __future__ import annotations

import ctypes
import datetime
import gc
import time
from collections.abc import Callable
from typing import Any

AHEAD = datetime.timedelta(days=40, hours=5)
_SECONDS = AHEAD.total_seconds()


def shift() -> None:
    """Move the clock forward by `AHEAD`. Monotonic clocks stay as they are."""
    read, read_ns, read_clock = time.time, time.time_ns, time.clock_gettime
    realtime = (time.CLOCK_REALTIME, getattr(time, "CLOCK_REALTIME_COARSE", time.CLOCK_REALTIME))

    def later() -> float:
        return read() + _SECONDS

    def later_ns() -> int:
        return read_ns() + int(_SECONDS) * 1_000_000_000

    def later_clock(clock: int) -> float:
        return read_clock(clock) + (_SECONDS if clock in realtime else 0)

    moved: dict[str, Callable[..., Any]] = {"time": later, "time_ns": later_ns, "clock_gettime": later_clock}
    for name, position in (("localtime", 0), ("gmtime", 0), ("ctime", 0), ("asctime", 0), ("strftime", 1)):
        moved[name] = _with_time(getattr(time, name), position, later, struct=name in ("asctime", "strftime"))
    for name, function in moved.items():
        setattr(time, name, function)
    _shift_datetime()


def _with_time(
    original: Callable[..., Any], position: int, later: Callable[[], float], *, struct: bool
) -> Callable[..., Any]:
    """`original`, given the later time where the caller left its time argument out."""
    localtime = time.localtime

    def call(*arguments: Any) -> Any:
        if len(arguments) > position and (struct or arguments[position] is not None):
            return original(*arguments)
        now: Any = later()
        return original(*arguments[:position], localtime(now) if struct else now)

    return call


def _shift_datetime() -> None:
    """`datetime.now` and `utcnow` read the system clock in C. (`today`, of date and datetime, calls `time.time`.)"""
    now, utcnow = datetime.datetime.__dict__["now"], datetime.datetime.__dict__["utcnow"]

    def later_now(cls: type[datetime.datetime], tz: datetime.tzinfo | None = None) -> datetime.datetime:
        moment: datetime.datetime = now.__get__(None, cls)(datetime.UTC) + AHEAD
        return moment.astimezone(tz) if tz is not None else moment.astimezone().replace(tzinfo=None)

    def later_utcnow(cls: type[datetime.datetime]) -> datetime.datetime:
        moment: datetime.datetime = utcnow.__get__(None, cls)()
        return moment + AHEAD

    (attributes,) = gc.get_referents(datetime.datetime.__dict__)
    attributes["now"] = classmethod(later_now)
    attributes["utcnow"] = classmethod(later_utcnow)
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(datetime.datetime))
