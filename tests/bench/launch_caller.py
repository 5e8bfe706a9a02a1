"""`python -m tests.bench.launch_caller`: launches on a launcher's socket, as the account that runs this, without an agent.

The first line of stdin is a JSON object (see `launch_client.Client.start`), each later one an order, answered with one
line of JSON. It verifies claim and result as the API would, and that the task ran as the account that was asked for.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import pwd
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any

from dagseal.airflow import asking
from integrity import messages
from integrity.digests import Digest
from integrity.fields import to_base64
from tests.attacks.attacker import opened
from tests.bench.launch_documents import SOURCE, Issuer, printed
from vocabulary import claims
from vocabulary.keys import SigningKey

ANSWER_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One launch. `marks_us` are microseconds since the request was about to be sent, of everybody who kept a mark;
    `task_us` are how long the steps inside the task took, by its own word."""

    first_seconds: float
    whole_seconds: float
    marks_us: dict[str, int]
    task_us: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Socket:
    """One connection: one job."""

    sock: socket.socket

    @classmethod
    def to(cls, path: str) -> _Socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(ANSWER_SECONDS)
        sock.connect(path)
        return cls(sock)

    def send(self, kind: str, fd: int | None = None, **fields: Any) -> None:
        fds = [] if fd is None else [fd]
        asking.send(self.sock, messages.encode(kind, fds=len(fds), **fields), *fds)

    def hear(self) -> dict[str, Any]:
        length = messages.body_length(self._exactly(messages.HEADER_BYTES))
        said: dict[str, Any] = json.loads(self._exactly(length))
        return said

    def expect(self, kind: str) -> dict[str, Any]:
        said = self.hear()
        if said["kind"] != kind:
            if said["kind"] == "result":
                said = json.loads(base64.b64decode(json.loads(base64.b64decode(said["envelope"]))["payload"]))
            raise RuntimeError(f"expected is {kind}, the launcher said {said}")
        return said

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            chunk = self.sock.recv(count - len(data))
            if not chunk:
                raise EOFError("the launcher closed the connection")
            data += chunk
        return data


class _Launching:
    """Inside the process."""

    def __init__(self, path: str, issuer: Issuer, archive_fd: int) -> None:
        self._path = path
        self._issuer = issuer
        self._fd = archive_fd
        self._uid = pwd.getpwnam(issuer.unix_user).pw_uid

    def launch(self, ending: str = "grant") -> Timed | None:
        """One launch, or one that ends before its grant (`deny`, `hang-up`). Raises `RuntimeError` for any other end."""
        issuer = self._issuer
        ticket = issuer.ticket()
        words = {"ticket": to_base64(issuer.signed(ticket)), "manifest": to_base64(issuer.manifest)}
        wall_ns, sent_ns = time.time_ns(), time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        marks = {"request sent": 0}

        def mark(name: str) -> None:
            marks[name] = (time.clock_gettime_ns(time.CLOCK_MONOTONIC) - sent_ns) // 1000

        link = _Socket.to(self._path)
        with link.sock:
            link.send("run", self._fd, **words)
            claim = link.expect("claim")
            mark("caller: claim received")
            if ending == "hang-up":
                return None
            verified = claims.verify_claim(base64.b64decode(claim["envelope"]), issuer.launcher)
            if ending == "deny":
                link.send("deny", detail="the caller measures what a refusal leaves behind")
            else:
                link.send("grant", envelope=to_base64(issuer.grant(ticket, verified.digest)))
            mark("caller: grant sealed and sent")
            log = b""
            while (said := link.hear())["kind"] == "log":
                log += base64.b64decode(said["data"])
            mark("caller: result received")
        result = claims.verify_result(base64.b64decode(said["envelope"]), issuer.launcher).result
        wanted = "success" if ending == "grant" else "refused"
        if result.state != wanted or result.ticket_digest != Digest.of(ticket.to_bytes()):
            raise RuntimeError(
                f"the launch ended as {result.state}, not {wanted}: {result.error} {result.detail} {log!r}"
            )
        if ending == "deny":
            return None
        first_ns, uid = printed(log)
        if uid != self._uid:
            raise RuntimeError(f"the task ran as uid {uid}, not as {issuer.unix_user}")
        # The launcher's marks count from `started_at`, on the wall clock: it ties them to ours.
        received = result.started_at - wall_ns // 1000
        marks["launcher: received"] = received
        marks["first instruction of the DAG"] = (first_ns - sent_ns) // 1000
        own = {name: us for name, us in result.timings_us.items() if not name.startswith("task_")}
        marks |= {f"launcher: {name}": received + us for name, us in own.items()}
        marks["launcher: tree dead, log read"] = result.ended_at - wall_ns // 1000
        return Timed(
            first_seconds=(first_ns - sent_ns) / 1e9,
            whole_seconds=marks["caller: result received"] / 1e6,
            marks_us=marks,
            task_us={name: us for name, us in result.timings_us.items() if name.startswith("task_")},
        )

    def many(self, count: int) -> int:
        """With ends that are no success: of ten claims one is denied, and after one the caller hangs up."""
        for number in range(count):
            self.launch({3: "deny", 7: "hang-up"}.get(number % 10, "grant"))
        return count

    def sustain(self, seconds: float) -> dict[str, Any]:
        """One after the other until the time is over; what was under way then is finished, and its time counts."""
        whole, begin = [], time.monotonic()
        while time.monotonic() - begin < seconds:
            timed = self.launch()
            assert timed
            whole.append(timed.whole_seconds)
        return {"whole_seconds": whole, "took_seconds": time.monotonic() - begin}


def _identity(path: str) -> dict[str, Any]:
    link = _Socket.to(path)
    with link.sock:
        link.send("identity")
        return link.expect("identity")


def _say(value: Any) -> None:
    print(json.dumps(value), flush=True)


def main() -> None:
    told = json.loads(sys.stdin.readline())
    issuer = Issuer.of(
        base64.b64decode(told["manifest"]),
        key=SigningKey(bytes.fromhex(told["api_key"])),
        identity=_identity(told["socket"]),
        unix_user=told["unix_user"],
    )
    with opened(SOURCE) as fd:
        launching = _Launching(told["socket"], issuer, fd)
        _say({"pid": os.getpid()})
        gc.freeze()
        for line in sys.stdin:
            match json.loads(line):
                case {"do": "launch"}:
                    timed = launching.launch()
                    assert timed
                    _say({name: getattr(timed, name) for name in Timed.__slots__})
                case {"do": "many", "count": int(count)}:
                    _say(launching.many(count))
                case {"do": "sustain", "seconds": seconds}:
                    _say(launching.sustain(seconds))
                case order:
                    raise RuntimeError(f"{order} is not an order")


if __name__ == "__main__":
    main()
