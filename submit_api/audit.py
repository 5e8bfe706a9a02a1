"""The audit log's events: who, what, on which object, with which digest, the verdict, and the rule that it follows from.

Promise: `accepted` writes in the caller's transaction, so an event is there exactly when what it tells of is. A refusal
has no such transaction; `refused` is written in one of its own. No event holds a secret's value.
"""

from __future__ import annotations

import re

from integrity.errors import DagsealError
from submit_api import permissions, problems
from submit_api.identity import Caller
from submit_api.refusals import RequestError
from submit_api.registry import events
from submit_api.registry.database import Transaction
from submit_api.registry.records import Event
from submit_api.strangers import LeftOut

# Notes on an error: it hides what is there, so it is a decision; its event is in a transaction already.
HIDES, RECORDED = "dagseal: hides", "dagseal: recorded"
ACCEPTED, REFUSED = "accepted", "refused"
MAX_DETAIL_CHARS = 2000
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
SERVICE = Caller(principal="dagseal", kind="service", admin=False, token_id="", address="", groups=frozenset())


def decision(
    *,
    at: int,
    caller: Caller,
    action: str,
    about: str,
    digest: str = "",
    detail: str = "",
    verdict: str = ACCEPTED,
    rule: str = "",
) -> Event:
    """What was decided. Where no `rule` is named, the table of permissions decided."""
    return Event(
        at=at,
        principal=caller.principal,
        token_id=caller.token_id,
        address=caller.address,
        action=action,
        object=_plain(about, 300),
        digest=digest,
        verdict=verdict,
        detail=_plain(_with_run(detail, caller), MAX_DETAIL_CHARS),
        rule=rule or permissions.ACTIONS.get(action, caller.kind),
    )


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
    rule: str = "",
) -> None:
    """Record a decision together with its effects."""
    said = decision(
        at=at,
        caller=caller,
        action=action,
        about=about,
        digest=digest,
        detail=detail,
        verdict=verdict,
        rule=rule,
    )
    await events.add(tx, said)


async def refused(
    tx: Transaction, error: DagsealError, *, at: int, caller: Caller | None, address: str, action: str, about: str
) -> None:
    """Record a refusal. Who could not prove who they are has no principal here. What is wrong with a request's own words is
    told to its sender only: it may repeat them, and they may be a secret in the wrong place."""
    said = "its sender was told what is wrong with it" if isinstance(error, RequestError) else str(error)
    event = Event(
        at=at,
        principal=caller.principal if caller else "",
        token_id=caller.token_id if caller else "",
        address=address,
        action=action,
        object=_plain(about, 300),
        digest="",
        verdict=REFUSED,
        detail=_plain(_with_run(f"{problems.slug_of(error)}: {said}", caller), MAX_DETAIL_CHARS),
        rule=rule_of(error),
    )
    await events.add(tx, event)


async def left_out(tx: Transaction, found: LeftOut, *, at: int) -> None:
    """Record how many refusals of strangers have no event of their own."""
    await accepted(
        tx,
        at=at,
        caller=SERVICE,
        action="audit.left-out",
        about="audit",
        verdict=REFUSED,
        detail=str(found),
        rule="unauthenticated",
    )


def noted(error: DagsealError, note: str) -> bool:
    """Whether the error has this note."""
    return note in getattr(error, "__notes__", ())


def rule_of(error: DagsealError) -> str:
    """What refused: an impersonation rule by its id, a rule about archives by its name, else the kind of error."""
    return _plain(getattr(error, "rule", "") or error.slug, 100)


def _with_run(detail: str, caller: Caller | None) -> str:
    """And the run of CI that the caller's token was made for."""
    return "; by ".join(filter(None, (detail, caller.via if caller else "")))


def _plain(text: str, limit: int) -> str:
    """One line that a terminal cannot be fooled with."""
    return _UNPRINTABLE.sub("\ufffd", text)[:limit]
