"""The ring of keys under which connections, variables and XComs rest: the newest encrypts, all decrypt.

What is stored is `dsk2`, the 16 bytes of the key's id, and what `RowKey.encrypt` made (nonce, ciphertext, tag); these first 20
bytes stand in the associated data too, before the row's name. What was stored before there were rings begins with its nonce
and is under the first key.

>>> ring = RowKeys(lambda: {1: RowKey(bytes(32))})
>>> stored = ring.encrypt(b"s3cret", row=b"row")
>>> stored[:4], stored[4:20].hex(), len(stored) - 20
(b'dsk2', '064ee668fa5fcdde3dbd3d958398cb7d', 34)
>>> ring.decrypt(stored, row=b"row"), ring.decrypt(RowKey(bytes(32)).encrypt(b"old", row=b"row"), row=b"row")
(b's3cret', b'old')
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from integrity.errors import SignatureError
from vocabulary.keys import RowKey

MAGIC = b"dsk2"
PREFIX_BYTES = len(MAGIC) + 16
FIRST = 1


class RowKeys:
    """`read` gives the keys that are there now, by number; there is at least one."""

    def __init__(self, read: Callable[[], Mapping[int, RowKey]]) -> None:
        self._read = read
        self._keys = dict(read())
        self.changing = asyncio.Lock()  # held by whoever adds or removes a key

    def refresh(self) -> None:
        """A key came or went."""
        self._keys = dict(self._read())

    @property
    def newest(self) -> RowKey:
        return self._keys[max(self._keys)]

    def listed(self) -> dict[int, RowKey]:
        """By number, the oldest first."""
        return dict(sorted(self._keys.items()))

    def encrypt(self, plaintext: bytes, *, row: bytes) -> bytes:
        key = self.newest
        return prefix(key) + key.encrypt(plaintext, row=prefix(key) + row)

    def decrypt(self, stored: bytes, *, row: bytes) -> bytes:
        """Raises `SignatureError` when the bytes were changed or moved, or are under a key that is not here."""
        named = stored[:PREFIX_BYTES]
        if named.startswith(MAGIC) and self._named(named) is None:
            self.refresh()  # another process may have made it
        key = self._named(named)
        if key is not None:
            return key.decrypt(stored[PREFIX_BYTES:], row=named + row)
        if FIRST not in self._keys:
            raise SignatureError("a stored secret is under a key that is not here: put its file back")
        return self._keys[FIRST].decrypt(stored, row=row)

    def _named(self, named: bytes) -> RowKey | None:
        return next((key for key in self._keys.values() if prefix(key) == named), None)


def prefix(key: RowKey) -> bytes:
    """With what everything begins that is stored under this key."""
    return MAGIC + bytes.fromhex(key.key_id)
