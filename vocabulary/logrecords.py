"""A task's log: records in the order in which the launcher read them, one line of canonical JSON each.

`source` is `stdout`, `stderr`, `log` (structured: each line of `text` is a JSON object with timestamp, level, logger and
event) or `launcher` (its own word, which no task can write). `text` is what was read of that source at one time, whole
lines where it can be; one that does not end with a newline is continued by the next of its source. Bytes that are not
UTF-8 stand as `\\xNN`. `at` is in microseconds since 1970. The result's log digest is the SHA-512 of all these lines.

>>> encode("stderr", 1700000000000000, "no such file\\n")
b'{"at":1700000000000000,"source":"stderr","text":"no such file\\\\n"}\\n'
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from integrity import canonical
from integrity.errors import MalformedError
from integrity.fields import Fields

MEDIA_TYPE = "application/x-ndjson"
SOURCES = ("stdout", "stderr", "log", "launcher")
MAX_RECORD_BYTES = 1024 * 1024
_SHOWN_FIRST = ("timestamp", "level", "logger", "logger_name", "event", "exception", "stack")


def encode(source: str, at: int, text: str) -> bytes:
    """One record and its newline."""
    return canonical.dump({"at": at, "source": source, "text": text}) + b"\n"


class Reader:
    """The log as text for people, from a stream that comes in pieces. What is no record is shown as it is: whether the
    stream is the launcher's is told by the digest, not here."""

    def __init__(self) -> None:
        self._begun = b""
        self._line = ""

    def feed(self, data: bytes) -> Iterator[tuple[str, str]]:
        """Source and text of what is whole by now; the source is empty for what is no record."""
        *lines, self._begun = (self._begun + data).split(b"\n")
        if len(self._begun) > MAX_RECORD_BYTES:
            lines, self._begun = [*lines, self._begun], b""
        for line in lines:
            source, text = decode(line)
            if source == "log":
                *whole, self._line = (self._line + text).split("\n")
                if len(self._line) > MAX_RECORD_BYTES:
                    whole, self._line = [*whole, self._line], ""
                text = "".join(readable(one) for one in whole)
            elif source == "launcher" and self._line:
                yield "log", readable(self._line)
                self._line = ""
            if text:
                yield source, text

    def rest(self) -> str:
        """What was begun and will not be ended."""
        line, self._line = self._line, ""
        begun, self._begun = self._begun, b""
        return (readable(line) if line else "") + begun.decode("utf-8", "backslashreplace")


def text_of(data: bytes) -> bytes:
    """All of it, for people."""
    reader = Reader()
    return "".join((*(text for _, text in reader.feed(data)), reader.rest())).encode("utf-8", "backslashreplace")


def decode(line: bytes) -> tuple[str, str]:
    """Source and text of one line; the source is empty for what is no record."""
    try:
        fields = Fields(canonical.load(line, max_bytes=MAX_RECORD_BYTES), "log record")
        fields.integer("at")
        found = fields.choice("source", SOURCES), fields.text("text", max_chars=MAX_RECORD_BYTES)
        fields.done()
        return found
    except MalformedError:
        return "", line.decode("utf-8", "backslashreplace") + "\n"


def readable(line: str) -> str:
    """A structured line as `[time] {LEVEL} logger - event key=value`, with its traceback below."""
    try:
        event: dict[str, Any] = json.loads(line)
        known = {key: event.get(key) or "" for key in _SHOWN_FIRST}
    except (ValueError, RecursionError, AttributeError):
        return line + "\n"
    head = f"[{known['timestamp']}] {{{str(known['level']).upper()}}} {known['logger'] or known['logger_name']}"
    more = "".join(f" {key}={_value(value)}" for key, value in event.items() if key not in known)
    below = "".join(f"\n{known[key]}" for key in ("stack", "exception") if known[key])
    return f"{head} - {known['event']}{more}{below}\n"


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value and not set(value) & set(" \t\r\n=\"'") else repr(value)
