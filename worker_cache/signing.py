"""What an agent needs to sign its requests (`vocabulary.signedrequests`): its key, the server's, the time, and an epoch.

The epoch is that of one process of the server, which says it with each answer. It is not secret and not believed: with a false
one a signature is good for nothing.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable

from integrity.digests import Digest
from vocabulary import signedrequests
from vocabulary.keys import SigningKey, VerifyKey
from vocabulary.signedrequests import NONCE_BYTES, Request

EPOCH_FIELD = "Dagseal-Epoch"
GOOD_FOR_SECONDS = 60
_EPOCH = re.compile(r"[0-9a-f]{32}")


class Signer:
    """Of one agent, for one server. `load` reads the key; it is read again when the server refuses what was signed."""

    def __init__(self, load: Callable[[], SigningKey], server: VerifyKey, now: Callable[[], float]) -> None:
        self._load, self._server, self._now = load, server.key_id, now
        self._key = load()
        self._epoch = ""

    @property
    def ready(self) -> bool:
        """Whether an epoch is known yet; without one nothing can be signed."""
        return bool(self._epoch)

    def sign(self, method: str, path: str, query: str, body: bytes | None, content_type: str) -> dict[str, str]:
        """The header fields of this request, for once and for a minute."""
        created = int(self._now())
        asked = Request(
            method=method,
            path=path,
            query=query,
            server=self._server,
            epoch=self._epoch,
            content_type=content_type if body is not None else None,
            body=Digest.of(body) if body is not None else None,
        )
        nonce = base64.urlsafe_b64encode(os.urandom(NONCE_BYTES)).decode().rstrip("=")
        return signedrequests.sign(asked, self._key, created=created, expires=created + GOOD_FOR_SECONDS, nonce=nonce)

    @property
    def state(self) -> tuple[str, str]:
        """For which process of the server, and with which key it signs."""
        return self._epoch, self._key.public.key_id

    def hear(self, epoch: str | None) -> None:
        """The epoch of an answer; what is none changes nothing."""
        if epoch is not None and _EPOCH.fullmatch(epoch):
            self._epoch = epoch

    def reread(self) -> None:
        """The key may be another than before: the agent may have joined anew meanwhile."""
        self._key = self._load()
