"""Requests that an agent signs with its own key (`vocabulary.signedrequests`): whether this one is what it says, once and now.

Checked in this order: 1 the form, one signature and no bearer token beside it; 2 that it is for this server; 3 for this
process of it, so that nothing that another process accepted is accepted again; 4 its time, by the service's clock, to
`WINDOW_SECONDS` on both sides; 5 that the key is of a worker that is enrolled now; 6 the signature, over method, path, query,
type and the digest of the body; 7 that it was not made already; and 8, when the body is read (`submit_api.bodies`), that it has
that digest. Not checked is the authority: the server's key says more, and a proxy may change it. Who cannot sign leaves nothing
in memory.
"""

from __future__ import annotations

from datetime import UTC, datetime

from aiohttp import web

from integrity.errors import MalformedError, SignatureError
from submit_api import bodies
from submit_api.effects import MICROSECONDS
from submit_api.refusals import ClockSkewError, EpochError, RequestSignatureError
from submit_api.service import Service
from vocabulary import signedrequests
from vocabulary.keys import VerifyKey
from vocabulary.signedrequests import Claimed

WINDOW_SECONDS = 60
EPOCH_FIELD = "Dagseal-Epoch"


def is_signed(request: web.Request) -> bool:
    """Whether it says to be; then nothing else is asked who sends it."""
    return signedrequests.INPUT in request.headers or signedrequests.SIGNATURE in request.headers


def read(service: Service, request: web.Request) -> Claimed:
    """What it says, by form, server and time; then find the key, and `accept`. From here on its body is read only if it is the
    one that is signed for. Raises `RequestSignatureError`, `ClockSkewError`, `EpochError`."""
    claimed = _read(request)
    try:
        service.keys.ring.find(claimed.request.server)
    except SignatureError:
        raise RequestSignatureError(
            "this is signed for another server: look at the agent's api_key and server"
        ) from None
    if claimed.request.epoch != service.epoch:
        raise EpochError(
            f"this is signed for another process of this service: sign it again, for the {EPOCH_FIELD} of this answer"
        )
    _require_current(claimed, _seconds(service))
    if claimed.request.body is not None:
        request[bodies.SIGNED] = claimed.request.body
    return claimed


def accept(service: Service, claimed: Claimed, key: VerifyKey) -> None:
    """The key, of whoever has it now, signed this, and for the first time. Raises `RequestSignatureError`,
    `ReplayedRequestError`, `TooManyRequestsError`."""
    try:
        claimed.verify(key)
    except SignatureError:
        raise RequestSignatureError(
            f"key {claimed.key_id[:16]}… did not sign this request as it came: was it changed on the way?",
            claimed.key_id,
        ) from None
    service.nonces.use(claimed.key_id, claimed.nonce, claimed.expires, _seconds(service))


def unknown(claimed: Claimed) -> RequestSignatureError:
    """What is said where nobody has this key."""
    return RequestSignatureError(
        f"no worker that is enrolled has key {claimed.key_id[:16]}…: join with a new invitation"
    )


def _read(request: web.Request) -> Claimed:
    if "Authorization" in request.headers:
        raise RequestSignatureError("the request has a signature and a bearer token: send one of them")
    try:
        claimed = signedrequests.read(request.method, request.raw_path, request.headers.items())
    except MalformedError as error:
        raise RequestSignatureError(str(error)) from None
    if claimed.request.body is None and request.body_exists:
        raise RequestSignatureError("the signature covers no body, and there is one")
    return claimed


def _require_current(claimed: Claimed, now: int) -> None:
    """Raises `ClockSkewError`, which names both clocks: one of them is wrong, or the request was kept back."""
    if not claimed.created <= claimed.expires <= claimed.created + WINDOW_SECONDS:
        raise RequestSignatureError(f"a signature is good for at most {WINDOW_SECONDS} seconds: see docs/protocol.md")
    if claimed.created > now + WINDOW_SECONDS or claimed.expires < now:
        raise ClockSkewError(
            f"signed at {_shown(claimed.created)} by the worker's clock, good until {_shown(claimed.expires)}; it is "
            f"{_shown(now)} by this service's clock: set the clock that is wrong"
        )


def _seconds(service: Service) -> int:
    return service.now_us() // MICROSECONDS


def _shown(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
