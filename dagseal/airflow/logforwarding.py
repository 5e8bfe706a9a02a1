"""The log of a task, from the launcher's records to Airflow's log of the task, by Airflow's own forwarders.

Lines of stdout and stderr go to the loggers `task.stdout` and `task.stderr`, structured lines are logged as the event that they
are, the launcher's own word goes to `launcher`. A structured line that Airflow cannot read is shown as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from typing import Any

import structlog
from airflow.sdk._shared.logging.structlog import reconfigure_logger
from airflow.sdk.execution_time.supervisor import forward_to_log, process_log_messages_from_subprocess

from vocabulary import logrecords

_LEVELS = {"stdout": logging.INFO, "stderr": logging.ERROR, "launcher": logging.INFO, "": logging.WARNING}
_NAMES = {"stdout": "task.stdout", "stderr": "task.stderr", "launcher": "launcher", "": "launcher"}


class LogForwarder:
    """Takes the stream in pieces; a line is forwarded when it is whole, and at the end what was begun."""

    def __init__(self, loggers: tuple[Any, ...]) -> None:
        plain = tuple(reconfigure_logger(one, structlog.processors.CallsiteParameterAdder) for one in loggers)
        self._loggers = loggers
        self._plain = {
            source: _primed(forward_to_log(plain, logger=_NAMES[source], level=level))
            for source, level in _LEVELS.items()
        }
        self._structured = _primed(process_log_messages_from_subprocess(loggers))
        self._begun = b""
        self._lines: dict[str, str] = {}

    def feed(self, data: bytes) -> None:
        *records, self._begun = (self._begun + data).split(b"\n")
        if len(self._begun) > logrecords.MAX_RECORD_BYTES:
            records, self._begun = [*records, self._begun], b""
        for record in records:
            source, text = logrecords.decode(record)
            *whole, rest = (self._lines.get(source, "") + text).split("\n")
            if len(rest) > logrecords.MAX_RECORD_BYTES:
                whole, rest = [*whole, rest], ""
            self._lines[source] = rest
            for line in whole:
                self._forward(source, line)

    def close(self) -> None:
        """What was begun and will not be ended."""
        if self._begun:
            self.feed(b"\n")
        for source, line in self._lines.items():
            if line:
                self._forward(source, line)
        self._lines = {}

    def _forward(self, source: str, line: str) -> None:
        if source != "log":
            self._plain[source].send(line.encode("utf-8", "backslashreplace"))
            return
        try:
            self._structured.send(line.encode("utf-8", "backslashreplace"))
        except Exception:  # Airflow's reader dies of a line that is no event with a level and a time; the task wrote it
            self._structured = _primed(process_log_messages_from_subprocess(self._loggers))
            self._forward("stdout", line)


def _primed(generator: Generator[None, bytes, None]) -> Generator[None, bytes, None]:
    next(generator)
    return generator
