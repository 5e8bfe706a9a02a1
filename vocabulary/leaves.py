"""What stands in the log: one decision each, as canonical JSON.

    release      a submission was recorded: its bytes, its manifest, its owner; `waits`: for approval; `queues`: those of its
                 tasks, or none where they are more than can be said; `author`: his signature (`vocabulary.authorship`), a
                 field that is left out where there is none
    activation   this release is the active one, until it is revoked or another is
    approval     a member approved it; with `enough` it waits no more
    revocation   it is never launched again
    retirement   its bytes are not kept any more
    ownership    whose the archive is, and who may read it: owner, group, mode (as unix has them)
    key          the log's key from here on; but for the first, signed by the one before

`at` is in seconds since 1970; `by` is the principal who decided, or the service itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, TypeAlias

from integrity import canonical, names
from integrity.digests import Digest
from integrity.errors import MalformedError
from integrity.fields import Fields, to_base64
from vocabulary import authorship
from vocabulary.keys import KEY_BYTES, SigningKey, VerifyKey
from vocabulary.tiles import MAX_ENTRY_BYTES

_HANDED_ON = b"dagseal/log-key/v1\n"
_ALL_MODES = 0o777
MAX_QUEUES = 100
_SIGNATURE_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    kind: ClassVar[str] = "release"
    at: int
    by: str
    archive: str
    number: int
    digest: Digest
    size: int
    manifest: Digest
    owner: str
    group: str
    waits: bool
    queues: tuple[str, ...] = ()
    author: bytes | None = None

    def __post_init__(self) -> None:
        if len(self.queues) > MAX_QUEUES or list(self.queues) != sorted(set(self.queues)):
            raise MalformedError(f"log entry: queues are at most {MAX_QUEUES}, sorted, each named once")


@dataclass(frozen=True, slots=True, kw_only=True)
class Activated:
    kind: ClassVar[str] = "activation"
    at: int
    by: str
    archive: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """About a release that is in the log, with its digest, so that it can be of no other."""

    at: int
    by: str
    archive: str
    number: int
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Approved(Decided):
    kind: ClassVar[str] = "approval"
    enough: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked(Decided):
    kind: ClassVar[str] = "revocation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retired(Decided):
    kind: ClassVar[str] = "retirement"


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    kind: ClassVar[str] = "ownership"
    at: int
    by: str
    archive: str
    owner: str
    group: str
    mode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyed:
    """`signature` is of the key before, over the origin and this key; None in the log's first leaf."""

    kind: ClassVar[str] = "key"
    at: int
    key: VerifyKey
    signature: bytes | None

    @classmethod
    def handed_on(cls, origin: str, key: VerifyKey, *, by: SigningKey, at: int) -> Keyed:
        return cls(at=at, key=key, signature=by.sign(_handing_on(origin, key)))

    def require_signed(self, origin: str, before: VerifyKey) -> None:
        """Raises `SignatureError`, or `MalformedError` where there is no signature."""
        if self.signature is None:
            raise MalformedError("a key in the log is signed by the key before it, unless it is the first leaf")
        before.verify(self.signature, _handing_on(origin, self.key))


Leaf: TypeAlias = Released | Activated | Approved | Revoked | Retired | Owned | Keyed
_KINDS: dict[str, type[Leaf]] = {
    kind.kind: kind for kind in (Released, Activated, Approved, Revoked, Retired, Owned, Keyed)
}
_READ: dict[str, Callable[[Fields], Any]] = {
    "at": lambda found: found.integer("at"),
    "by": lambda found: found.name("by", "principal"),
    "archive": lambda found: found.name("archive", "archive"),
    "number": lambda found: found.integer("number", least=1),
    "digest": lambda found: found.digest("digest"),
    "size": lambda found: found.integer("size", least=1),
    "manifest": lambda found: found.digest("manifest"),
    "owner": lambda found: found.name("owner", "principal"),
    "group": lambda found: found.name("group", "group"),
    "waits": lambda found: found.boolean("waits"),
    "queues": lambda found: tuple(names.check("queue", item) for item in found.items("queues", max_items=MAX_QUEUES)),
    "author": lambda found: _author(found) if "author" in found.keys() else None,
    "enough": lambda found: found.boolean("enough"),
    "mode": lambda found: _mode(found.integer("mode")),
    "key": lambda found: VerifyKey(found.binary("key", max_bytes=KEY_BYTES)),
    "signature": lambda found: found.optional("signature", partial(_signature, found)),
}
_NAMES: dict[str, tuple[str, ...]] = {
    kind: tuple(field.name for field in fields(made)) for kind, made in _KINDS.items()
}


def to_bytes(leaf: Leaf) -> bytes:
    """The entry."""
    values = {name: _plain(getattr(leaf, name)) for name in _NAMES[leaf.kind]}
    if isinstance(leaf, Released) and leaf.author is None:
        del values["author"]
    return canonical.dump({"v": 1, "kind": leaf.kind, **values})


def from_bytes(entry: bytes) -> Leaf:
    """Raises `MalformedError` for anything but one canonical entry of a known kind."""
    found = Fields(canonical.load(entry, max_bytes=MAX_ENTRY_BYTES), "log entry")
    found.version(1)
    kind = found.choice("kind", tuple(_KINDS))
    leaf: Leaf = _KINDS[kind](**{name: _READ[name](found) for name in _NAMES[kind]})
    found.done()
    return leaf


def _handing_on(origin: str, key: VerifyKey) -> bytes:
    return _HANDED_ON + origin.encode() + b"\n" + key.raw


def _author(found: Fields) -> bytes:
    raw = found.binary("author", max_bytes=authorship.MAX_BYTES)
    if not raw:
        raise MalformedError("log entry: an author's signature is not empty")
    return raw


def _signature(found: Fields, key: str) -> bytes:
    raw = found.binary(key, max_bytes=_SIGNATURE_BYTES)
    if len(raw) != _SIGNATURE_BYTES:
        raise MalformedError(f"log entry: a signature is {_SIGNATURE_BYTES} bytes, not {len(raw)}")
    return raw


def _mode(mode: int) -> int:
    if mode > _ALL_MODES:
        raise MalformedError(f"log entry: mode {mode:o} is not one of three octal digits")
    return mode


def _plain(value: Any) -> Any:
    match value:
        case Digest():
            return str(value)
        case VerifyKey():
            return to_base64(value.raw)
        case bytes():
            return to_base64(value)
        case tuple():
            return list(value)
    return value
