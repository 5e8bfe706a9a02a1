"""The task's log: plain lines on the log pipe, from Airflow's loggers and from `print`, with secrets masked.

Masking is Airflow's own, by value: what a connection or variable brought is replaced by `***`. It guards against accidents,
not against a task that wants to tell.
"""

from __future__ import annotations

import io
import sys
import threading

FORMAT = "[%(asctime)s] {%(levelname)s} %(name)s - %(message)s"


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
    """Point Python's streams, `logging` and structlog at descriptors 1 and 2, which are the log pipe."""
    from airflow.sdk._shared.logging import configure_logging
    from airflow.sdk.configuration import conf
    from airflow.sdk.log import mask_logs

    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - it lives as long as the process
    sys.stdout = sys.__stdout__ = MaskedText(1)  # type: ignore[misc,assignment]
    sys.stderr = sys.__stderr__ = MaskedText(2)  # type: ignore[misc,assignment]
    configure_logging(
        log_level=conf.get("logging", "logging_level", fallback="INFO"),
        log_format=FORMAT,
        colors=False,
        output=sys.stdout,
        extra_processors=(mask_logs,),
        namespace_log_levels=conf.get("logging", "namespace_levels", fallback=None),
        cache_logger_on_first_use=False,
    )
