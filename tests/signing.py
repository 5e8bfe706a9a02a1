"""Signed requests for tests: whatever is to be said with a worker's key, at whatever time."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from integrity.digests import Digest
from integrity.fields import to_base64
from vocabulary import signedrequests
from vocabulary.keys import SealTo, SigningKey, VerifyKey
from vocabulary.signedrequests import Request


def nonce() -> str:
    return secrets.token_urlsafe(16)


@dataclass(slots=True, kw_only=True)
class Hand:
    """Signs for one server, known by its key id and its epoch."""

    server: str
    epoch: str
    key: SigningKey = field(default_factory=SigningKey.generate)
    now: Callable[[], float] = time.time

    def sign(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        *,
        content_type: str = "application/json",
        key: SigningKey | None = None,
        created: int | None = None,
        seconds: int = 60,
        once: str | None = None,
    ) -> dict[str, str]:
        """The header fields."""
        path, _, query = target.partition("?")
        at = int(self.now()) if created is None else created
        asked = Request(
            method=method,
            path=path,
            query=query,
            server=self.server,
            epoch=self.epoch,
            content_type=None if body is None else content_type,
            body=None if body is None else Digest.of(body),
        )
        return signedrequests.sign(asked, key or self.key, created=at, expires=at + seconds, nonce=once or nonce())


def join_body(token: str, request_key: VerifyKey, verify_key: VerifyKey, sealing_key: SealTo) -> dict[str, str]:
    return {
        "token": token,
        "request_key": to_base64(request_key.raw),
        "verify_key": to_base64(verify_key.raw),
        "sealing_key": to_base64(sealing_key.raw),
    }
