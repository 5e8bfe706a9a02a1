"""Ends a task as Airflow ends one: by a SIGTERM to its process, at which the operator's `on_kill` runs.

The launcher asks for it over the control socket and waits for a while; who does not end is killed. Before the task itself runs
there is no handler, and in a pid namespace of its own the signal is then without effect.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading

from integrity.errors import MalformedError
from launcher.task import frames


def listen(control: socket.socket) -> None:
    """From now on, until the process ends. Nobody else reads from `control` before the task's last word."""
    threading.Thread(target=_listen, args=(control,), name="dagseal-terminating", daemon=True).start()


def _listen(control: socket.socket) -> None:
    with contextlib.suppress(EOFError, OSError, MalformedError):
        while True:
            message, _ = frames.receive(control)
            if message.kind == "terminate":
                os.kill(os.getpid(), signal.SIGTERM)
