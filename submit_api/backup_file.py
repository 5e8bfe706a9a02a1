"""The file of a backup: a tar stream that ends with a signature over all of it.

    head.json              {"v": 1, "id": …, "revision": …, "made_at": …}
    keys/<file>            the two key files; only when that was asked for by its unsafe name
    rows/<table>/<number>  JSON lines, one row each, some thousand bytes to some mebibytes
    blobs/<sha512>         each archive that a release names
    logs/<launch>          as much of it as its launch says
    end.json               DSSE, by the API's key: {"v": 1, "id": …, "members": n, "digest": …}

The digest is over one line for each member before it, in order, `name size sha512`:

>>> line("head.json", 2, Digest.of(b"{}"))[:35]
b'head.json 2 27c74670adb75075fad058d'

Written and read in one pass, so it can go through a pipe. Nothing that was read is to be kept before `Reader.finish` has
returned: only then it is known that it is whole, and the service's own.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import IO

from integrity import canonical
from integrity.digests import Digest
from integrity.errors import MalformedError
from integrity.fields import Fields
from vocabulary import envelopes
from vocabulary.keys import KeyRing, SigningKey

PAYLOAD_TYPE = "application/vnd.dagseal.backup.v1+json"
HEAD, END = "head.json", "end.json"
MAX_PART_BYTES = 256 * 1024 * 1024
_NAME = re.compile(r"(head\.json|end\.json|keys/[a-z]+|rows/[a-z_]+/[0-9]+|blobs/[0-9a-f]{128}|logs/[0-9a-f]{32})")
_COPY_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Which backup this is, and of which revision its tables are."""

    id: str
    revision: str
    made_at: int

    def to_bytes(self) -> bytes:
        return canonical.dump({"v": 1, "id": self.id, "revision": self.revision, "made_at": self.made_at})

    @classmethod
    def from_bytes(cls, data: bytes) -> Head:
        fields = Fields(canonical.load(data, max_bytes=4096), HEAD)
        fields.version(1)
        head = cls(
            id=fields.name("id", "id"),
            revision=fields.text("revision", max_chars=32),
            made_at=fields.integer("made_at"),
        )
        fields.done()
        return head


def line(name: str, size: int, digest: Digest) -> bytes:
    return f"{name} {size} {digest.hex}\n".encode()


class _Sum:
    """What the end signs."""

    def __init__(self) -> None:
        self._hashed = hashlib.sha512()
        self.members = 0

    def add(self, name: str, size: int, digest: Digest) -> None:
        self._hashed.update(line(name, size, digest))
        self.members += 1

    def statement(self, head: Head) -> bytes:
        digest = str(Digest(self._hashed.hexdigest()))
        return canonical.dump({"v": 1, "id": head.id, "members": self.members, "digest": digest})


class Writer:
    """Members in the order that the module's head shows; then `finish`."""

    def __init__(self, file: IO[bytes], head: Head) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w|", format=tarfile.GNU_FORMAT)  # noqa: SIM115 - `finish` closes it
        self._sum, self._head = _Sum(), head
        self.add(HEAD, head.to_bytes())

    def add(self, name: str, data: bytes) -> None:
        self._member(name, io.BytesIO(data), len(data))

    def add_file(self, name: str, file: IO[bytes], size: int) -> Digest:
        """The next `size` bytes of an open file; the digest of what was written. Raises `EOFError` for a shorter file."""
        return self._member(name, file, size)

    def finish(self, key: SigningKey) -> None:
        envelope = envelopes.sign(self._sum.statement(self._head), payload_type=PAYLOAD_TYPE, key=key)
        self._member(END, io.BytesIO(envelope), len(envelope))
        self._tar.close()

    def _member(self, name: str, file: IO[bytes], size: int) -> Digest:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = size, 0o600
        hashing = _Hashing(file)
        try:
            self._tar.addfile(entry, hashing)
        except OSError as error:
            if "unexpected end of data" in str(error):
                raise EOFError(name) from None
            raise
        digest = hashing.digest
        self._sum.add(name, size, digest)
        return digest


class Part:
    """One member, to be read once; `chunks` is the whole of it."""

    def __init__(self, name: str, size: int, file: IO[bytes]) -> None:
        self.name, self.size = name, size
        self.kind, _, self.rest = name.partition("/")
        self._file = _Hashing(file)

    def chunks(self) -> Iterator[bytes]:
        try:
            while chunk := self._file.read(_COPY_BYTES):
                yield chunk
        except tarfile.TarError as error:
            raise MalformedError(f"the backup cannot be read to its end: {error}") from None

    def read(self) -> bytes:
        if self.size > MAX_PART_BYTES:
            raise MalformedError(f"the backup's {self.name} has {self.size} bytes, the limit is {MAX_PART_BYTES}")
        return b"".join(self.chunks())

    def end(self) -> Digest:
        for _ in self.chunks():
            pass
        return self._file.digest


class Reader:
    """`parts`, then `finish`. Raises `MalformedError` for what is not a backup, or not the whole of one."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sum = _Sum()
        self._parts = self._read()
        first = next(self._parts, None)
        if first is None or first.name != HEAD:
            raise MalformedError("this is not a backup of dagseal")
        self.head = Head.from_bytes(first.read())
        self.keys: dict[str, bytes] = {}
        self._ahead = next(self._parts, None)
        while self._ahead is not None and self._ahead.kind == "keys":
            self.keys[self._ahead.rest] = self._ahead.read()
            self._ahead = next(self._parts, None)
        self._end: bytes | None = None

    def parts(self) -> Iterator[Part]:
        """All but the keys, which are in `keys` already."""
        for part in chain([] if self._ahead is None else [self._ahead], self._parts):
            if part.name == END:
                self._end = part.read()
            else:
                yield part

    def finish(self, ring: KeyRing) -> None:
        """All was read, and is what the holder of a key of `ring` wrote. Raises `MalformedError`, `SignatureError`."""
        if self._end is None:
            raise MalformedError("the backup ends before its signature: it was not written, or not copied, to its end")
        payload, _ = envelopes.verify(self._end, payload_type=PAYLOAD_TYPE, ring=ring)
        if payload != self._sum.statement(self.head):
            raise MalformedError("the backup is not what was signed: a part of it was changed, moved or left out")

    def _read(self) -> Iterator[Part]:
        try:
            with tarfile.open(fileobj=self._file, mode="r|") as tar:
                ended = False
                for entry in tar:
                    file = tar.extractfile(entry) if entry.isreg() else None
                    if ended or file is None or not _NAME.fullmatch(entry.name):
                        raise MalformedError(f"the backup holds {entry.name[:200]!r}, which has no place in one")
                    part = Part(entry.name, entry.size, file)
                    yield part
                    digest = part.end()
                    ended = entry.name == END
                    if not ended:
                        self._sum.add(entry.name, entry.size, digest)
        except (tarfile.TarError, EOFError) as error:
            raise MalformedError(f"the backup cannot be read to its end: {error}") from None


class _Hashing(io.RawIOBase):
    """What is read through it, hashed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._source, self._hashed = file, hashlib.sha512()

    def read(self, size: int = -1) -> bytes:
        chunk = self._source.read(size)
        self._hashed.update(chunk)
        return chunk

    @property
    def digest(self) -> Digest:
        return Digest(self._hashed.hexdigest())
