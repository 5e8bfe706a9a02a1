"""Results on stdout: as a table for people, as JSON or YAML for programs, or plain for awk.

JSON and YAML hold what the server said, unshortened. A table shortens digests and writes times as UTC; whatever could
move a terminal's cursor is shown as text.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from dagseal.cli.context import Run

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SHORT_DIGEST = re.compile(r"(sha512:[0-9a-f]{16})[0-9a-f]{112}")
_BOLD, _RED, _GREEN, _PLAIN = "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[0m"


def rows(run: Run, found: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """A list of things; `columns` are the keys that a table shows."""
    match run.settings.output:
        case "json":
            _write(json.dumps(list(found), indent=2, ensure_ascii=False))
        case "yaml":
            _write(_yaml(list(found)))
        case "plain":
            _aligned(run, found, columns, rule=False)
        case _:
            _aligned(run, found, columns, rule=True)


def item(run: Run, found: Mapping[str, Any], keys: Sequence[str] | None = None) -> None:
    """One thing: key and value by line; `keys` are those that a table shows."""
    match run.settings.output:
        case "json":
            _write(json.dumps(found, indent=2, ensure_ascii=False))
        case "yaml":
            _write(_yaml(found))
        case _:
            shown = [key for key in keys or found if key in found]
            width = max((len(key) for key in shown), default=0)
            for key in shown:
                _write(f"{key:<{width}}  {cell(key, found[key])}".rstrip())


def cell(key: str, value: Any) -> str:
    """A value as one line of text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and (key.endswith("_at") or key == "at"):
        from datetime import UTC, datetime

        return datetime.fromtimestamp(value / 1_000_000, UTC).isoformat(sep=" ", timespec="milliseconds")[:23] + "Z"
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        value = ", ".join(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return safe(_SHORT_DIGEST.sub(r"\1…", text).replace("\n", " ").replace("\t", " "))


def safe(text: str) -> str:
    """`text` without what a terminal would obey."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def verdict(run: Run, ok: bool, text: str) -> None:
    """One line that says ok or FAILED."""
    word = "ok    " if ok else "FAILED"
    if run.colored():
        word = f"{_GREEN if ok else _RED}{word}{_PLAIN}"
    _write(f"{word} {safe(text)}")


def unmade(run: Run, text: str) -> None:
    """One line that says neither."""
    _write(f"-      {safe(text)}")


class LogPrinter:
    """A launch's log as it comes: what the task wrote to stderr goes to stderr. With JSON the records as they are, whose
    SHA-512 is the launch's `log_digest`. On a terminal what is more than text and colours is shown, not obeyed."""

    def __init__(self, run: Run) -> None:
        from vocabulary import logrecords

        self._bare = run.settings.output == "json"
        self._reader = logrecords.Reader()

    def write(self, data: bytes) -> None:
        if self._bare and not sys.stdout.isatty():
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        elif self._bare:
            _put(sys.stdout, data.decode("utf-8", "replace"))
        else:
            for source, text in self._reader.feed(data):
                _put(sys.stderr if source == "stderr" else sys.stdout, text)

    def end(self) -> None:
        """What was begun is not continued."""
        _put(sys.stdout, self._reader.rest())


def _put(stream: TextIO, text: str) -> None:
    if stream.isatty():
        parts = re.split(r"(\x1b\[[0-9;]{0,20}m)", text)
        text = "".join(part if index % 2 else safe(part) for index, part in enumerate(parts))
    stream.flush()
    stream.buffer.write(text.encode("utf-8", "backslashreplace"))
    stream.buffer.flush()


def _aligned(run: Run, found: Sequence[Mapping[str, Any]], columns: Sequence[str], *, rule: bool) -> None:
    cells = [[cell(column, row.get(column)) for column in columns] for row in found]
    widths = [max([len(column), *(len(line[i]) for line in cells)]) for i, column in enumerate(columns)]
    between = " | " if rule else "  "
    head = between.join(f"{column:<{width}}" for column, width in zip(columns, widths, strict=True)).rstrip()
    _write(f"{_BOLD}{head}{_PLAIN}" if run.colored() else head)
    if rule:
        _write("=+=".join("=" * width for width in widths))
    for line in cells:
        _write(between.join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip())


def _yaml(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip("\n")


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")


def more(run: Run, found: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Rows that come later: one JSON or YAML document, or one line, each."""
    match run.settings.output:
        case "json":
            for row in found:
                _write(json.dumps(row, ensure_ascii=False))
        case "yaml":
            for row in found:
                _write("---\n" + _yaml(row))
        case _:
            for row in found:
                _write("  ".join(cell(column, row.get(column)) for column in columns))
    sys.stdout.flush()
