"""Secrets come from a file, stdin or a prompt: argv is readable by every account of the host."""

from __future__ import annotations

import getpass
import os
import sys

from dagseal.cli.context import Run
from dagseal.cli.exits import UsageError

MAX_BYTES = 4 * 1024 * 1024


def read_secret(run: Run, source: str | None, what: str) -> str:
    """The text in the file `source` (`-` is stdin), or what is typed at a prompt. One newline at its end is dropped."""
    if source is None:
        if not sys.stdin.isatty():
            text = _text(read_bytes("-"), "stdin")
        elif run.no_input:
            raise UsageError(f"{what} is read from a file or stdin: add --file PATH, or pipe it in")
        else:
            text = getpass.getpass(f"{what}: ")
    else:
        text = _text(read_bytes(source), source)
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise UsageError(f"{what} is empty: give it by --file PATH, or pipe it in")
    return text


def read_bytes(source: str) -> bytes:
    """A file's bytes, or stdin's for `-`."""
    try:
        if source == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with open(source, "rb") as file:
                data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"{source} is over {MAX_BYTES} bytes")
    return data


def write_new(path: str, text: str) -> None:
    """Write a secret to a file that must be new, mode 0600, durably."""
    from vocabulary import durable

    folder, name = os.path.split(os.path.abspath(path))
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            durable.create_exclusive(fd, name, text.encode() + b"\n")
        finally:
            os.close(fd)
    except OSError as error:
        raise UsageError(f"{path} cannot be created: {error.strerror}; nothing was overwritten") from None


def check_new(path: str) -> None:
    """Raise `UsageError` early, before a token is made that could then not be kept."""
    if os.path.lexists(path):
        raise UsageError(f"{path} exists already: choose another file, or remove it")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"the folder {folder} cannot be written")


def _text(data: bytes, source: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{source} is not UTF-8 text: byte {error.start}") from None
