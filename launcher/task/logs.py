"""The task's log on its three pipes: stdout, stderr, and JSON lines of Airflow's loggers; with secrets masked.

Masking is Airflow's own, by value: what a connection or variable brought is replaced by `***`. It guards against accidents,
not against a task that wants to tell.
"""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import MutableMapping
from typing import Any

LOG_FD = 6


class MaskedText(io.TextIOBase):
    """A text stream on a descriptor. Whole lines are masked before they leave; `buffer` is the bare one."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, fd: int) -> None:
        self.buffer = io.FileIO(fd, "w", closefd=False)
        self._pending = ""
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        with self._lock:
            self._pending += text
            whole, newline, self._pending = self._pending.rpartition("\n")
            if newline:
                self._put(whole + newline)
        return len(text)

    def flush(self) -> None:
        with self._lock:
            rest, self._pending = self._pending, ""
            if rest:
                self._put(rest)

    def _put(self, text: str) -> None:
        data = masked(text).encode("utf-8", self.errors)
        while data:
            data = data[self.buffer.write(data) :]

    def fileno(self) -> int:
        return self.buffer.fileno()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False


def masked(text: str) -> str:
    """`text` without the secrets that Airflow's masker knows."""
    from airflow.sdk._shared.secrets_masker import redact

    return str(redact(text))


def configure() -> None:
    """Point Python's streams at descriptors 1 and 2, `logging` and structlog at the structured log."""
    import logging

    import structlog
    from airflow.sdk._shared.logging import configure_logging
    from airflow.sdk.configuration import conf
    from airflow.sdk.log import mask_logs

    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - it lives as long as the process
    sys.stdout = sys.__stdout__ = MaskedText(1)  # type: ignore[misc,assignment]
    sys.stderr = sys.__stderr__ = MaskedText(2)  # type: ignore[misc,assignment]
    configure_logging(
        log_level=conf.get("logging", "logging_level", fallback="INFO"),
        log_format="%(message)s",  # not Airflow's JSON: its tracebacks leave out the source lines
        colors=False,
        output=MaskedText(LOG_FD),
        extra_processors=(mask_logs,),
        namespace_log_levels=conf.get("logging", "namespace_levels", fallback=None),
        cache_logger_on_first_use=False,
    )
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], _as_json])
    for handler in logging.getLogger().handlers:
        formatter: Any = handler.formatter
        formatter.processors = (*formatter.processors[:-1], _as_json)


def _as_json(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    """One event as one line, as structlog's last processor: whatever a task logs, its logging does not fail."""
    from structlog.processors import format_exc_info

    event = format_exc_info(logger, method, event)
    if "exception" in event:
        event["exception"] = masked(event["exception"])
    name = event.pop("logger_name", "")
    first = {
        "timestamp": event.pop("timestamp", ""),
        "level": event.pop("level", method),
        "logger": event.pop("logger", name),
        "event": event.pop("event", ""),
    }
    try:
        return json.dumps(
            {**first, **event}, ensure_ascii=False, allow_nan=False, default=lambda one: masked(repr(one))
        )
    except (TypeError, ValueError, RecursionError):
        words = {key: masked(str(value)) for key, value in first.items()}
        return json.dumps({**words, "more": masked(repr(event))}, ensure_ascii=False)
