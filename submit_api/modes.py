"""Unix-like modes of what people own: archives, connections, variables and queues.

    read     see it and fetch it; of a secret never its value
    write    replace or remove it, and decide which release is launched
    execute  launch it (an archive), use it in a task (a connection, a variable), run in it (a queue)

Nine bits, three for the owner, three for the group, three for all others, written as `ls -l` and chmod(1) do. As in unix the
first of the three that fits decides: an owner whose own bits are off is refused, though everybody else is let in.

    >>> shown(0o750)
    'rwxr-x---'
    >>> shown(changed(0o750, "g+w,o=r"))
    'rwxrwxr--'
"""

from __future__ import annotations

import re
from typing import Protocol

from submit_api.refusals import InvalidRequestError

READ, WRITE, EXECUTE = 4, 2, 1
WORDS = {READ: "read", WRITE: "write", EXECUTE: "execute"}
LETTERS = {"r": READ, "w": WRITE, "x": EXECUTE}
_SHIFTS = {"u": 6, "g": 3, "o": 0}
_CLAUSE = re.compile(r"([ugoa]*)([-+=])([rwx]*)")
PATTERN = r"^([0-7]{3}|[ugoa]*[-+=][rwx]*(,[ugoa]*[-+=][rwx]*)*)$"
MAX_CHARS = 60

# Of what is new. Nobody's task gets a secret until somebody says so.
NEW = {"archive": 0o770, "connection": 0o600, "variable": 0o600, "queue": 0o771}


class Owned(Protocol):
    """Whatever has an owner, a group and a mode."""

    @property
    def owner(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def mode(self) -> int: ...


def shown(mode: int) -> str:
    """`rwxr-x---`."""
    return "".join(
        letter if mode >> shift & bit else "-" for shift in _SHIFTS.values() for letter, bit in LETTERS.items()
    )


def permits(found: Owned, bit: int, *, principal: str, groups: frozenset[str]) -> bool:
    """Whether this principal has that bit. `registry.ownership.permitted` says the same in SQL."""
    shift = 6 if principal == found.owner else 3 if found.group in groups else 0
    return bool(found.mode >> shift & bit)


def changed(mode: int, text: str) -> int:
    """`mode` after what chmod(1) takes: three octal digits, or clauses such as `g+rx,o=`. Raises `InvalidRequestError`."""
    if re.fullmatch(r"[0-7]{3}", text):
        return int(text, 8)
    for clause in text.split(",") if len(text) <= MAX_CHARS else [""]:
        found = _CLAUSE.fullmatch(clause)
        if not found:
            raise InvalidRequestError(
                f"{text[:MAX_CHARS]!r} is no mode: write three octal digits, as 750, or what changes, as g+rx,o="
            )
        bits = sum(LETTERS[letter] for letter in set(found[3]))
        for who in "ugo" if found[1] in ("", "a") else set(found[1].replace("a", "ugo")):
            shift = _SHIFTS[who]
            if found[2] == "=":
                mode &= ~(7 << shift)
            mode = mode & ~(bits << shift) if found[2] == "-" else mode | bits << shift
    return mode
