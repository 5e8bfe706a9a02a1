"""A task's log on a terminal: of every source, and of what is no record at all.

Seen to fail when weakened: `printing._put` that writes its text to a terminal as it is.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vocabulary import logrecords

SHOWN = "text \u00fc\n\x1b[31mred\x1b[0m\n"
OBEYED = "\x1b]0;title\x07\x1b[2J\x1b[1;1H\x1b[6n\x9b2J\rover\x08\u202eevil\n"
PRINT = """
import sys
from types import SimpleNamespace
from dagseal.cli.printing import LogPrinter
log = LogPrinter(SimpleNamespace(settings=SimpleNamespace(output=sys.argv[1])))
log.write(sys.stdin.buffer.read())
log.end()
"""


def on_a_terminal(output: str, data: bytes) -> str:
    ours, terminal = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", PRINT, output], stdin=subprocess.PIPE, stdout=terminal, stderr=terminal
    ) as process:
        os.close(terminal)
        assert process.stdin is not None
        process.stdin.write(data)
        process.stdin.close()
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:  # EIO: the other end is closed (pty(7))
            pass
    os.close(ours)
    assert process.returncode == 0, shown
    return shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("output", ["plain", "json"])
@pytest.mark.parametrize("source", [*logrecords.SOURCES, ""])
def test_a_terminal_obeys_nothing_of_a_log(output: str, source: str) -> None:
    """Colours come through; a title, a cleared screen, a moved cursor, a question that would be typed as input do not."""
    text = SHOWN + OBEYED
    data = logrecords.encode(source, 1, text) if source else text.encode()
    shown = on_a_terminal(output, data)
    assert "over" in shown and "evil" in shown, "it is there, to be read"
    left = shown.replace("\x1b[31m", "").replace("\x1b[0m", "").replace("\n", "")
    assert left.isprintable(), left
    if output == "plain" and source in ("stdout", "stderr", ""):
        assert shown.startswith(SHOWN)
