"""Used tickets. A ticket id is on disk before its task is forked, so no crash lets it be used again."""

from __future__ import annotations

import os

from integrity import durable, names
from integrity.errors import ReplayError
from integrity.tickets import CLOCK_SKEW_SECONDS, Ticket


class UsedTickets:
    """A folder with one file per ticket id, holding the second at which the ticket expires."""

    def __init__(self, dir_fd: int) -> None:
        self._dir_fd = dir_fd
        durable.sweep(dir_fd)

    def use(self, ticket: Ticket) -> None:
        """Mark as used, durably. Raises `ReplayError` when it was before."""
        try:
            durable.create_exclusive(self._dir_fd, names.check("id", ticket.ticket_id), str(ticket.expires_at).encode())
        except FileExistsError:
            raise ReplayError(f"ticket {ticket.ticket_id} was used before: launch again for a new one") from None

    def forget_expired(self, *, now: int) -> int:
        """Remove ids whose ticket is refused by its age anyway; how many."""
        count = 0
        for name in os.listdir(self._dir_fd):
            if name.startswith(durable.TEMPORARY_PREFIX):
                continue
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._dir_fd)
            try:
                expires_at = int(os.read(fd, 32))
            finally:
                os.close(fd)
            if now > expires_at + 2 * CLOCK_SKEW_SECONDS:
                os.unlink(name, dir_fd=self._dir_fd)
                count += 1
        return count
