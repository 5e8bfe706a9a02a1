"""The launcher's own record: every decision, one line each, chained by hash, on disk before it takes effect.

A line is canonical JSON with `seq`, `at` (microseconds since 1970), `prev` and what happened; `prev` is the SHA-512 of the
line before, without its newline. Removing, changing or reordering a line breaks the chain at that place; that whole lines
were taken off the end shows only beside what others hold (the results and claims that they record). A crash can only leave
an unfinished last line, which was not acknowledged: it is cut off at the next start.

It is the replay store too: a ticket is used by its `launch` line, so no crash, restart or clock lets its task run again.

A file is named by the `seq` of its first line, `journal.000000000001.jsonl`, and the last one is written. When it is full the
next appears, whole, and begins with `continued` and `carried`: `prev` as in any line, the ids of the tickets that have not
expired, and up to when expired ones were dropped. So a start reads one file, and nobody here needs those before it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, BinaryIO

from integrity import canonical
from integrity.digests import Digest
from integrity.errors import ExpiredError, MalformedError, ReplayError, SettingsError
from vocabulary import durable
from vocabulary.tickets import CLOCK_SKEW_SECONDS, MAX_LIFETIME_SECONDS, VerifiedTicket

MAX_LINE_BYTES = 2 * 1024 * 1024  # more than the names of the largest grant; a longer line could never be read again
MAX_FILE_BYTES = 16 * 1024 * 1024  # read again at the next start
_CARRIED_IDS = 100  # per line: what it takes to build one is little, and given back
_NAME = re.compile(r"journal\.([0-9]{12})\.jsonl")
_UNNUMBERED = "journal.jsonl"  # the only file of versions that did not continue in another
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC

Place = tuple[int, str | None]  # a line's seq and hash; None: not at hand, so what the next line says of it is taken
START: Place = (0, "0" * 128)


class Journal:
    """Appends; the only writer, by a lock on its folder (flock(2)). `now_us` gives microseconds since 1970. Raises
    `SettingsError` when another process holds the lock, `MalformedError` when the chain is broken."""

    def __init__(self, dir_fd: int, *, now_us: Callable[[], int], max_bytes: int = MAX_FILE_BYTES) -> None:
        self._dir_fd = dir_fd
        self._now_us = now_us
        self._max_bytes = max_bytes
        self._fd = -1
        try:
            fcntl.flock(dir_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            durable.sweep(dir_fd)
            self._number_the_first()
            name = (names(dir_fd) or [_name(1)])[-1]
            self._take_up(name, before(name))
            os.fsync(dir_fd)
        except BlockingIOError:
            raise SettingsError("another launcher is writing the journal: stop it first") from None

    def _number_the_first(self) -> None:
        """An older version locked the file itself, and may be running."""
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(_UNNUMBERED, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._dir_fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                os.close(fd)
            if names(self._dir_fd):
                raise SettingsError(
                    f"{_UNNUMBERED} was written by an older version, after this one: move it away once its tickets expired"
                )
            os.rename(_UNNUMBERED, _name(1), src_dir_fd=self._dir_fd, dst_dir_fd=self._dir_fd)

    def _take_up(self, name: str, last: Place) -> None:
        """Go on in this file, if it follows `last`; else nothing is changed."""
        fd = os.open(name, _FLAGS, 0o600, dir_fd=self._dir_fd)
        used: dict[str, int] = {}
        size = dropped = 0
        try:
            with open(fd, "rb", closefd=False) as file:
                for entry, place in verify(lines_of(file), last):
                    size, last = file.tell(), place
                    if entry["event"] == "launch":
                        latest = entry["at"] // 1_000_000 + MAX_LIFETIME_SECONDS + CLOCK_SKEW_SECONDS
                        used[entry.get("ticket_id", entry["ticket"])] = entry.get("expires_at", latest)
                    elif entry["event"] == "carried":
                        used |= entry["tickets"]
                    elif entry["event"] == "continued":
                        dropped = entry["dropped_until"]
            if size == 0 and last != START:
                raise MalformedError(f"journal: {name} is empty")
            if os.fstat(fd).st_size != size:
                os.ftruncate(fd, size)
                os.fsync(fd)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, LookupError | TypeError):
                raise MalformedError(f"journal: {name}: line {last[0]} is none that a launcher writes") from None
            raise
        self._used, self._dropped_until = used, dropped
        self._go_on_in(fd, size, last)
        self._full_at = self._max_bytes
        self.forget_expired()

    def _go_on_in(self, fd: int, size: int, last: Place) -> None:
        self.close()
        self._fd, self._size, self._last = fd, size, last

    def use(self, verified: VerifiedTicket, **fields: Any) -> None:
        """Record the launch, and with it that its ticket is used. Raises `ReplayError` when it was before, else as `write`."""
        ticket = verified.ticket
        self._forget_oldest()
        if ticket.expires_at <= self._dropped_until:
            raise ExpiredError(f"the ticket expired at {ticket.expires_at}, and the clock was set back since: check it")
        # Lines of versions with another replay store have no ticket_id: there the ticket's digest stands for it.
        if not self._used.keys().isdisjoint((ticket.ticket_id, str(verified.digest))):
            raise ReplayError(f"ticket {ticket.ticket_id} was used before: launch again for a new one")
        self.write(
            "launch",
            launch_id=ticket.launch_id,
            ticket_id=ticket.ticket_id,
            expires_at=ticket.expires_at,
            ticket=str(verified.digest),
            digest=str(ticket.digest),
            rule=ticket.rule,
            **fields,
        )
        self._used[ticket.ticket_id] = ticket.expires_at

    def forget_expired(self) -> None:
        """Drop the ids of tickets that are refused by their age, also if the clock is set back."""
        now = self._now_us() // 1_000_000
        for ticket_id in [ticket_id for ticket_id, expires_at in self._used.items() if expires_at <= now]:
            self._forget(ticket_id)

    def _forget_oldest(self) -> None:
        """At each use what expired of those that were used first: under load no more are kept than live at once."""
        now = self._now_us() // 1_000_000
        while (oldest := next(iter(self._used), None)) is not None and self._used[oldest] <= now:
            self._forget(oldest)

    def _forget(self, ticket_id: str) -> None:
        self._dropped_until = max(self._dropped_until, self._used.pop(ticket_id))

    def write(self, event: str, **fields: Any) -> None:
        """Record, and return when it is on disk. Raises `OSError` or `MalformedError`: then the event must not happen."""
        if self._size >= self._full_at:
            self._continue()
        line, last = self._line(self._last, event, fields)
        durable.append(self._fd, line, size=self._size)
        self._size += len(line)
        self._last = last

    def _line(self, last: Place, event: str, fields: dict[str, Any]) -> tuple[bytes, Place]:
        seq = last[0] + 1
        line = canonical.dump({**fields, "event": event, "seq": seq, "at": self._now_us(), "prev": last[1]})
        if len(line) > MAX_LINE_BYTES:
            raise MalformedError(f"journal: a line of {len(line)} bytes is over the limit of {MAX_LINE_BYTES}")
        return line + b"\n", (seq, Digest.of(line).hex)

    def _continue(self) -> None:
        """In a new file. Where that fails nothing is written to the old one either, and the next write tries again."""
        self.forget_expired()
        data, last = self._line(self._last, "continued", {"dropped_until": self._dropped_until})
        ids = iter(self._used.items())
        while part := dict(islice(ids, _CARRIED_IDS)):
            line, last = self._line(last, "carried", {"tickets": part})
            data += line
        name = _name(self._last[0] + 1)
        try:
            durable.create_exclusive(self._dir_fd, name, data)
        except FileExistsError:  # of the try before, and nothing was written since: what it says counts
            self._take_up(name, self._last)
        else:
            self._go_on_in(os.open(name, _FLAGS, 0o600, dir_fd=self._dir_fd), len(data), last)
        self._full_at = self._max_bytes + self._size

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def names(dir_fd: int) -> list[str]:
    """The files of the journal, in the order of the chain."""
    return sorted(name for name in os.listdir(dir_fd) if _NAME.fullmatch(name))


def _name(seq: int) -> str:
    return f"journal.{seq:012}.jsonl"


def before(name: str) -> Place:
    """The line that the first one of this file follows."""
    found = _NAME.fullmatch(name)
    return START if found is None or int(found[1]) == 1 else (int(found[1]) - 1, None)


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """The lines, without their newline. One without its end was never acknowledged: it is none."""
    return (line[:-1] for line in file if line.endswith(b"\n"))


def verify(lines: Iterable[bytes], last: Place = START) -> Iterator[tuple[dict[str, Any], Place]]:
    """Yield what each line says and its place, in turn. Raises `MalformedError` at the first that does not follow `last`,
    the line before it."""
    for line in lines:
        entry = canonical.load(line, max_bytes=MAX_LINE_BYTES)
        seq, prev = last
        if not isinstance(entry, dict) or (entry.get("seq"), entry.get("prev")) != (seq + 1, prev or entry.get("prev")):
            raise MalformedError(f"journal: line {seq + 1} does not follow the line before it")
        last = seq + 1, Digest.of(line).hex
        yield entry, last
