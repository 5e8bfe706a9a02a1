"""The audit log's events: who, what, on which object, with which digest, and the verdict.

Promise: `accepted` writes in the caller's transaction, so an event is there exactly when what it tells of is. A refusal
has no such transaction; `refused` is written in one of its own. No event holds a secret's value.
"""

from __future__ import annotations

import re

from integrity.errors import DagsealError
from submit_api import problems
from submit_api.identity import Caller
from submit_api.registry import ledger
from submit_api.registry.database import Transaction
from submit_api.registry.records import Event

ACCEPTED, REFUSED = "accepted", "refused"
MAX_DETAIL_CHARS = 2000
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
SERVICE = Caller(principal="dagseal", kind="service", admin=False, token_id="", address="", groups=frozenset())


async def accepted(
    tx: Transaction,
    *,
    at: int,
    caller: Caller,
    action: str,
    about: str,
    digest: str = "",
    detail: str = "",
    verdict: str = ACCEPTED,
) -> None:
    """Record a decision together with its effects."""
    event = Event(
        at=at,
        principal=caller.principal,
        token_id=caller.token_id,
        address=caller.address,
        action=action,
        object=_plain(about, 300),
        digest=digest,
        verdict=verdict,
        detail=_plain(detail, MAX_DETAIL_CHARS),
    )
    await ledger.add_event(tx, event)


async def refused(
    tx: Transaction, error: DagsealError, *, at: int, caller: Caller | None, address: str, action: str, about: str
) -> None:
    """Record a refusal. Who could not prove who they are has no principal here."""
    event = Event(
        at=at,
        principal=caller.principal if caller else "",
        token_id=caller.token_id if caller else "",
        address=address,
        action=action,
        object=_plain(about, 300),
        digest="",
        verdict=REFUSED,
        detail=_plain(f"{problems.slug_of(error)}: {error}", MAX_DETAIL_CHARS),
    )
    await ledger.add_event(tx, event)


def _plain(text: str, limit: int) -> str:
    """One line that a terminal cannot be fooled with."""
    return _UNPRINTABLE.sub("\ufffd", text)[:limit]
