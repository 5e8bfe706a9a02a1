"""A task's output on a terminal."""

from __future__ import annotations

import os
import subprocess
import sys

SHOWN = b"text \xc3\xbc\n\x1b[31mred\x1b[0m\n"
OBEYED = b"\x1b]0;title\x07\x1b[2J\x1b[1;1H\x1b[6n\x9b2J\rover\x08\xc2\x9b2J\xe2\x80\xae"


def test_a_terminal_obeys_nothing_of_a_log() -> None:
    """Colours come through; a title, a cleared screen, a moved cursor, a question that would be typed as input do not. In a
    pipe the bytes are as they were."""
    code = f"from dagseal.cli import printing; printing.write_log({SHOWN + OBEYED!r})"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, check=True).stdout == SHOWN + OBEYED
    ours, terminal = os.openpty()
    with subprocess.Popen(command, stdout=terminal) as process:
        os.close(terminal)
        shown = b""
        try:
            while data := os.read(ours, 4096):
                shown += data
        except OSError:  # EIO: the other end is closed (pty(7))
            pass
    os.close(ours)
    assert process.returncode == 0
    text = shown.decode().replace("\r\n", "\n")
    assert text.startswith(SHOWN.decode())
    rest = text.removeprefix(SHOWN.decode())
    assert rest
    assert not [character for character in rest if not character.isprintable() and character != "\ufffd"], rest
