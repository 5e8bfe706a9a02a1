"""Secrets backend classes that misbehave, for the process that they are called in: each does what it is asked to by a name."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import struct
import sys
import time
from typing import Any


class Store:
    """Honest: gives `values`, and tells which names it was asked for as the variable `asked`."""

    def __init__(self, values: dict[str, str], **_: Any) -> None:
        self._values, self._asked = values, []

    def get_conn_value(self, conn_id: str) -> str | None:
        self._asked.append(conn_id)
        return self._values.get(conn_id)

    def get_variable(self, key: str) -> str | None:
        return json.dumps(self._asked) if key == "asked" else self.get_conn_value(key)


class Hostile:
    """Whatever the name says."""

    def __init__(self, spied_on: list[str] = (), parent: int = 0) -> None:  # type: ignore[assignment]
        self._spied_on, self._parent = spied_on, parent

    def get_conn_value(self, conn_id: str) -> str | None:
        return self.get_variable(conn_id)

    def get_variable(self, key: str) -> str | None:
        answer = getattr(self, key)()
        return answer if answer is None else str(answer)

    def fine(self) -> str:
        return "fine"

    def pid(self) -> int:
        return os.getpid()

    def absent(self) -> None:
        return None

    def hang(self) -> None:
        while True:
            time.sleep(3600)

    def spin(self) -> None:
        while True:
            pass

    def leave(self) -> None:
        os._exit(0)

    def crash(self) -> None:
        ctypes.string_at(0)

    def exit(self) -> None:
        sys.exit("hunter2secret")

    def fail(self) -> None:
        raise ValueError("hunter2secret")

    def print(self) -> str:
        for stream in (sys.stdout, sys.stderr, sys.__stdout__):
            print("hunter2secret" * 100_000, file=stream, flush=True)
        os.write(1, b"hunter2secret")
        return "printed"

    def huge(self) -> str:
        return "x" * (8 << 20)

    def memory(self) -> str:
        return str(len(bytearray(64 << 30)))

    def disk(self) -> str:
        with open(os.environ["HOME"] + "/file", "wb") as file:
            file.write(bytes(64 << 20))
        return "written"

    def fork(self) -> str:
        pid = os.fork()
        if pid == 0:
            signal.pause()
            os._exit(0)
        return str(pid)

    def forked_and_hung(self) -> None:
        with open(os.environ["HOME"] + "/forked", "w") as file:
            file.write(self.fork())
        self.hang()

    def garbage(self) -> str:
        os.write(_socket(), b"\xff" * 100_000)
        return "garbage"

    def endless(self) -> None:
        while True:
            os.write(_socket(), b"\x00\x00\x00\x02{}" * 1000)

    def twice(self) -> str:
        body = json.dumps({"fds": 0, "kind": "found", "number": 99, "value": "forged"}, separators=(",", ":")).encode()
        os.write(_socket(), struct.pack(">I", len(body)) + body)
        return "twice"

    def spy(self) -> str:
        """What it can reach of the API, by what it tried."""
        reached: dict[str, Any] = {}
        proc = f"/proc/{self._parent}"
        links = [f"{proc}/fd/{number}" for number in range(3, 40)]
        for path in (*self._spied_on, f"{proc}/environ", f"{proc}/mem", f"{proc}/maps", *links, "/root", "/home", "/"):
            with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
                reached[path] = "opened"
                reached[path] = f"read {len(file.read(100))} bytes"
            with contextlib.suppress(OSError):
                reached[path] = f"listed {len(os.listdir(path))}"
        for path in (*self._spied_on, "/tmp/from-a-backend", "/etc/from-a-backend"):
            with contextlib.suppress(OSError):
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
                reached[path] = "written"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.ptrace(16, self._parent, 0, 0) == 0:
            reached["ptrace"] = "attached"
        with contextlib.suppress(OSError):
            os.kill(self._parent, 0)
            reached["signal"] = "sent"
        fds = {int(name) for name in os.listdir("/proc/self/fd")}
        reached["environment"], reached["fds"] = sorted(os.environ), len(fds - {_socket()})
        return json.dumps(reached)


class Unopened:
    def __init__(self, **_: Any) -> None:
        raise RuntimeError("hunter2secret")


def _socket() -> int:
    return int(sys.argv[1])
