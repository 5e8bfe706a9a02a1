"""The audit log over HTTP: a page of it as JSON."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from aiohttp import web

from submit_api import audit, views
from submit_api.http.routes import Call, answer
from submit_api.models import EventList, EventView
from submit_api.refusals import InvalidRequestError
from submit_api.registry import events
from submit_api.registry.events import Query

MAX_EVENTS = 1000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC_3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_MICROSECONDS = re.compile(r"[0-9]{1,16}")


async def listed(call: Call) -> web.Response:
    wanted, limit = _wanted(call), call.number("limit", 100, most=MAX_EVENTS)
    async with call.service.database.read() as tx:
        found = await events.page(tx, wanted, limit=limit)
    return answer(EventList(events=[views.copied(EventView, event) for event in found]))


def _wanted(call: Call) -> Query:
    query = call.request.query
    verdict = query.get("verdict")
    if verdict not in (None, audit.ACCEPTED, audit.REFUSED):
        raise InvalidRequestError(f"verdict is to be {audit.ACCEPTED} or {audit.REFUSED}")
    return Query(
        after=call.number("after", 0),
        about=query.get("object"),
        principal=query.get("principal"),
        action=query.get("action"),
        verdict=verdict,
        since=_time(query.get("since"), "since"),
        until=_time(query.get("until"), "until"),
    )


def _time(text: str | None, name: str) -> int | None:
    """Microseconds since 1970."""
    if text is None:
        return None
    if _MICROSECONDS.fullmatch(text):
        return int(text)
    try:
        if not _RFC_3339.fullmatch(text):
            raise ValueError
        return (datetime.fromisoformat(text.upper()) - _EPOCH) // timedelta(microseconds=1)
    except ValueError:
        raise InvalidRequestError(
            f"{name} is to be a time as RFC 3339 writes it, 2027-01-15T08:00:00Z, or microseconds since 1970; "
            "a '+' in it is written %2B"
        ) from None
