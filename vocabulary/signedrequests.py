"""Requests that a worker's agent signs: one strict profile of HTTP Message Signatures (RFC 9421), Ed25519 only.

    POST /v1/launches/1f…/log?offset=0 HTTP/1.1
    Content-Type: application/octet-stream
    Content-Digest: sha-512=:<base64>:                              RFC 9530; only where there is a body
    Dagseal-Server: <key id of the API's signing key>               the one server that it is for
    Dagseal-Epoch: <32 hexadecimal characters>                      the one process of that server that it is for
    Signature-Input: dagseal=("@method" "@path" "@query" "dagseal-server" "dagseal-epoch" "content-type" "content-digest");
        created=1790000000;expires=1790000060;nonce="<22 of base64url>";keyid="<64 hex>";alg="ed25519";tag="dagseal"
    Signature: dagseal=:<base64 of 64 bytes>:

(In one line.) What is signed is the base that section 2.5 of the RFC makes of them. There are two lists of components: this
one, and the same without its last two, of a request without a body. Path and query are those that the API is asked for, byte
by byte as sent. The authority is not signed: a proxy may rewrite it, and `dagseal-server` says better which server is meant.

Promise: `read` takes this form and nothing else: another label, list, order or parameter, a second signature, a field that is
there twice, are `MalformedError`. It believes nothing yet: `Claimed.verify` does, with a key of the caller's choice. No clock
and no memory are here: that the time is right and the nonce new is asked by who has them.

>>> key = SigningKey(bytes(32))
>>> asked = Request(method="GET", path="/v1/x", query="", server="a" * 64, epoch="b" * 32)
>>> fields = sign(asked, key, created=1, expires=61, nonce="c" * 22)
>>> fields["Signature"]
'dagseal=:JEevhjjxOv0A9FrvP2yUSXNpRCOF9N9zlYlR8yJgIsQfXTngBsQq7e3aeXjvMFVffmNYBTf4xBX3bfxGGzRkBA==:'
>>> read("GET", "/v1/x", [*fields.items()]).verify(key.public)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from integrity.digests import Digest
from integrity.errors import MalformedError
from integrity.fields import from_base64, to_base64
from vocabulary.keys import SigningKey, VerifyKey

SERVER, EPOCH, TYPE, DIGEST = "dagseal-server", "dagseal-epoch", "content-type", "content-digest"
INPUT, SIGNATURE = "signature-input", "signature"
BARE = ("@method", "@path", "@query", SERVER, EPOCH)
WITH_BODY = (*BARE, TYPE, DIGEST)
NONCE_BYTES = 16
SIGNATURE_BYTES = 64
MAX_FIELD_CHARS = 8192
_LISTS = {"(" + " ".join(f'"{name}"' for name in names) + ")": names for names in (BARE, WITH_BODY)}
_INPUT = re.compile(
    r"dagseal=(?P<parameters>(?P<covered>\([^()]*\));created=(?P<created>[1-9][0-9]{0,10});expires=(?P<expires>[1-9][0-9]{0,10});"
    r'nonce="(?P<nonce>[A-Za-z0-9_-]{22})";keyid="(?P<key>[0-9a-f]{64})";alg="ed25519";tag="dagseal")'
)
_SIGNATURE = re.compile(r"dagseal=:([A-Za-z0-9+/]{86}==):")
_TARGET = re.compile(r"(?P<path>/[!-\"$->@-~]*)(?:\?(?P<query>[!-\"$-~]*))?")  # what is printed, without a fragment
_SERVER = re.compile(r"[0-9a-f]{64}")
_EPOCH = re.compile(r"[0-9a-f]{32}")
_TYPE = re.compile(r"[!-~](?:[ -~]{0,254}[!-~])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be signed. `query` is without its question mark. `body` and `content_type` are given both, or neither."""

    method: str
    path: str
    query: str
    server: str
    epoch: str
    content_type: str | None = None
    body: Digest | None = None

    def __post_init__(self) -> None:
        if not self.method.isascii() or not self.method.isalpha() or self.method != self.method.upper():
            raise MalformedError("a signed request's method is written in capital letters")
        if not (found := _TARGET.fullmatch(self.target)) or (found["path"], found["query"] or "") != (
            self.path,
            self.query,
        ):
            raise MalformedError("a signed request is for a path, with or without a query")
        if not _SERVER.fullmatch(self.server) or not _EPOCH.fullmatch(self.epoch):
            raise MalformedError("a signed request names its server by 64 and its epoch by 32 hexadecimal characters")
        if (self.body is None) != (self.content_type is None):
            raise MalformedError("a signed request has a type and a digest where it has a body, and else neither")
        if self.content_type is not None and not _TYPE.fullmatch(self.content_type):
            raise MalformedError("a signed request's content type is printable ASCII")

    @property
    def target(self) -> str:
        """As it stands in the request's first line."""
        return f"{self.path}?{self.query}" if self.query else self.path

    def components(self) -> list[tuple[str, str]]:
        """What the signature covers, in its order."""
        found = [("@method", self.method), ("@path", self.path), ("@query", f"?{self.query}")]
        return found + [(name.lower(), value) for name, value in self.fields().items()]

    def fields(self) -> dict[str, str]:
        """The header fields among them."""
        named = {"Dagseal-Server": self.server, "Dagseal-Epoch": self.epoch}
        if self.body is None or self.content_type is None:
            return named
        return named | {"Content-Type": self.content_type, "Content-Digest": self.body.repr_digest}


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A request as it says of itself. Nothing of it is true before `verify` returned."""

    request: Request
    key_id: str
    created: int
    expires: int
    nonce: str
    base: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    def verify(self, key: VerifyKey) -> None:
        """Raises `SignatureError` unless this key signed all that is covered, and the parameters."""
        key.verify(self.signature, self.base)


def sign(request: Request, key: SigningKey, *, created: int, expires: int, nonce: str) -> dict[str, str]:
    """The header fields to send with it; all that it covers are among them."""
    components = request.components()
    covered = " ".join(f'"{name}"' for name, _ in components)
    parameters = (
        f'({covered});created={created};expires={expires};nonce="{nonce}";keyid="{key.public.key_id}"'
        ';alg="ed25519";tag="dagseal"'
    )
    made = key.sign(base(components, parameters))
    signed = {"Signature-Input": f"dagseal={parameters}", "Signature": f"dagseal=:{to_base64(made)}:"}
    return request.fields() | signed


def read(method: str, target: str, headers: Iterable[tuple[str, str]]) -> Claimed:
    """What a request says of itself, by its first line and all of its header fields. Raises `MalformedError`."""
    wanted = {SERVER, EPOCH, TYPE, DIGEST, INPUT, SIGNATURE}
    found: dict[str, str] = {}
    for name, value in headers:
        if (name := name.lower()) in wanted:
            if name in found:
                raise MalformedError(f"the field {name} is there twice: one signature, and each field once, is taken")
            found[name] = value.strip(" \t")
    parameters = _INPUT.fullmatch(_taken(found, INPUT))
    names = _LISTS.get(parameters["covered"]) if parameters else None
    if parameters is None or names is None:
        raise MalformedError("Signature-Input is not written as dagseal's agents write it: see docs/protocol.md")
    signature = _SIGNATURE.fullmatch(_taken(found, SIGNATURE))
    if not signature:
        raise MalformedError("Signature is to be dagseal=:<base64 of 64 bytes>:, and nothing besides")
    with_body = names == WITH_BODY
    if not with_body and DIGEST in found:
        raise MalformedError("the signature does not cover the Content-Digest that is there")
    at = _TARGET.fullmatch(target)
    if not at:
        raise MalformedError("a signed request is for a path, with or without a query")
    request = Request(
        method=method,
        path=at["path"],
        query=at["query"] or "",
        server=_taken(found, SERVER),
        epoch=_taken(found, EPOCH),
        content_type=_taken(found, TYPE) if with_body else None,
        body=Digest.from_repr_digest(_taken(found, DIGEST)) if with_body else None,
    )
    return Claimed(
        request=request,
        key_id=parameters["key"],
        created=int(parameters["created"]),
        expires=int(parameters["expires"]),
        nonce=parameters["nonce"],
        base=base(request.components(), parameters["parameters"]),
        signature=from_base64(signature[1], "Signature", max_bytes=SIGNATURE_BYTES),
    )


def base(components: Sequence[tuple[str, str]], parameters: str) -> bytes:
    """The signature base (RFC 9421, section 2.5): a line for each component, and the parameters."""
    lines = [f'"{name}": {value}' for name, value in (*components, ("@signature-params", parameters))]
    return "\n".join(lines).encode("ascii")


def _taken(found: dict[str, str], name: str) -> str:
    value = found.get(name, "")
    if not 0 < len(value) <= MAX_FIELD_CHARS:
        raise MalformedError(f"a signed request has one field {name}, of at most {MAX_FIELD_CHARS} characters")
    return value
