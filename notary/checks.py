"""The numbered checks between a request and a fork. Each names the threat that it answers (docs/threat-model.md).

 1  the ticket is signed by a trusted API key                      T-forged-ticket
 2  … is for this launcher                                         T-foreign-ticket
 3  … and is neither early nor expired                             T-stale-ticket
 4  the manifest is signed by a trusted API key                    T-forged-manifest
 5  … is the very manifest that the ticket means                   T-mix-and-match
 6  … and agrees with the ticket on archive, bytes, task and digest T-mix-and-match
 7  the unix user may be become here, by local policy              T-wrong-user
 8  the bytes have the ticket's SHA-512, and are sealed            T-tampered-bytes, T-swap-after-check
 9  the ticket was not used before                                 T-replay
10  the task's process is who it must be, dropped and hardened     T-privilege-left
11  the task digest it reports is the ticket's                     T-drift
12  the grant is signed by a trusted API key, for this ticket and this claim, and sealed to us  T-forged-grant

1 to 6 are here, 7 is the monitor's (`launcher.monitor.Monitor.account`), 8 `sealed`, 9 `journal.use`, 10
`attestation.attest`, 11 and 12 are made in `running`.
Not checked here: whether the release was revoked after the ticket was signed; the API does that when it is claimed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from integrity.errors import DigestMismatchError, NotFoundError, OutOfScopeError
from vocabulary import manifest, tickets
from vocabulary.keys import KeyRing
from vocabulary.manifest import VerifiedManifest
from vocabulary.tickets import VerifiedTicket

_KEPT, _KEPT_BYTES = 16, 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedRequest:
    """A ticket and its manifest, past checks 1 to 6."""

    ticket: VerifiedTicket
    manifest: VerifiedManifest


def check_request(ticket: VerifiedTicket, manifest_envelope: bytes, ring: KeyRing) -> VerifiedRequest:
    """Checks 4 to 6, for a ticket past 1 to 3 (`vocabulary.tickets.verify`). Raises a `SecurityError`."""
    found = (_known if len(manifest_envelope) <= _KEPT_BYTES else manifest.verify)(manifest_envelope, ring)
    wanted = ticket.ticket
    wanted.manifest_digest.require(found.digest, "the manifest")
    stated = found.manifest
    if (stated.archive, stated.number, stated.owner) != (wanted.archive, wanted.release, wanted.owner):
        raise OutOfScopeError(
            f"the ticket is for {wanted.archive}@{wanted.release}, not {stated.archive}@{stated.number}"
        )
    wanted.digest.require(stated.digest, "the manifest's archive digest")
    try:
        task = stated.task(wanted.dag_id, wanted.task_id)
    except NotFoundError as error:
        raise OutOfScopeError(str(error)) from None
    expected = None if stated.task_check == "archive" else task.digest
    if wanted.task_digest != expected:
        raise DigestMismatchError(f"the ticket's task digest is {wanted.task_digest}, the manifest's is {expected}")
    return VerifiedRequest(ticket=ticket, manifest=found)


@lru_cache(maxsize=_KEPT)
def _known(envelope: bytes, ring: KeyRing) -> VerifiedManifest:
    """Check 4, which depends on these bytes and these keys and on nothing else: for the next launch of a release, which brings
    the same bytes, the answer is kept. What was refused is verified anew."""
    return manifest.verify(envelope, ring)


def check_ticket(envelope: bytes, ring: KeyRing, *, audience: str, now: int) -> VerifiedTicket:
    """Checks 1 to 3."""
    return tickets.verify(envelope, ring, audience=audience, now=now)
