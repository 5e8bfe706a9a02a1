"""The one question that every agent asks all the time, whether the log has grown, answered without making a request of it.

Promise: the answer is the one that the route gives (`http.log.checkpoint`), which is public and the same for everybody; it is
counted as one. Only exactly one whole head is taken, of a form that no two readers of HTTP understand differently, and only
while what the log says is known to be as of the last commit: everything else goes the way of all requests.
"""

from __future__ import annotations

import re
import time
from email.utils import formatdate

from submit_api.http.routes import Route
from submit_api.metrics import Metrics
from submit_api.service import Service
from submit_api.signed import EPOCH_FIELD

MAX_HEAD_BYTES = 4096
_OF_THE_MESSAGE = rb"connection|content-length|expect|keep-alive|te|trailer|transfer-encoding|upgrade"
_FIELD = rb"(?!(?i:" + _OF_THE_MESSAGE + rb"):)[A-Za-z][A-Za-z0-9-]*: [!-~](?:[ -~]*[!-~])?\r\n"


class Polls:
    """Of one route of one service."""

    def __init__(self, service: Service, route: Route, metrics: Metrics, headers: dict[str, str]) -> None:
        self._service = service
        self._head = re.compile(
            rb"GET " + re.escape(route.path.encode()) + rb" HTTP/1\.1\r\n(?=(?i:.*^host:))(?:" + _FIELD + rb")+\r\n",
            re.MULTILINE | re.DOTALL,
        )
        self._fields = "".join(
            f"{name}: {value}\r\n" for name, value in {**headers, EPOCH_FIELD: service.epoch}.items()
        )
        self._count = metrics.requests.labels(method="GET", route=route.path, status="200")
        self._seconds = metrics.seconds.labels(method="GET", route=route.path)
        self._made: tuple[bytes, bytes] = b"", b""

    def answer(self, data: bytes) -> bytes | None:
        """The whole answer to these bytes, or None where they are not that question, or it is not at hand."""
        began = time.perf_counter()
        if len(data) > MAX_HEAD_BYTES or not self._head.fullmatch(data):
            return None
        note = self._service.transparency.at_hand()
        if note is None:
            return None
        if self._made[0] is not note:
            head = (
                f"HTTP/1.1 200 OK\r\n{self._fields}Content-Length: {len(note)}\r\nDate: {formatdate(usegmt=True)}\r\n"
            )
            self._made = note, head.encode()
        request_id = self._service.randomness.token_bytes(8).hex().encode()
        self._count.inc()
        self._seconds.observe(time.perf_counter() - began)
        return b"%bDagseal-Request-Id: %b\r\n\r\n%b" % (self._made[1], request_id, note)
