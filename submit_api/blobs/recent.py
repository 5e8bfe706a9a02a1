"""Small blobs in memory."""

from __future__ import annotations

from collections import OrderedDict

from integrity.digests import Digest


class Recent:
    """Least recently used bytes, at most so many. Blobs never change, so nothing here goes stale."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def get(self, digest: Digest) -> bytes | None:
        data = self._held.get(digest.hex)
        if data is not None:
            self._held.move_to_end(digest.hex)
        return data

    def put(self, digest: Digest, data: bytes) -> None:
        self.drop(digest)
        self._held[digest.hex] = data
        self._bytes += len(data)
        while self._bytes > self._most_bytes:
            _, dropped = self._held.popitem(last=False)
            self._bytes -= len(dropped)

    def drop(self, digest: Digest) -> None:
        self._bytes -= len(self._held.pop(digest.hex, b""))
