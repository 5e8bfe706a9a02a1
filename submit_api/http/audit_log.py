"""The audit log over HTTP: a page of it as JSON, or all of it as lines, for who accepts one of those.

An export goes up to the newest event of its beginning, by pages of which each has a short transaction: it is as long as the
log and takes the memory of one page. It ends with the event that says what was exported, with the SHA-512 of its bytes,
before its last byte is sent: what breaks off has none.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.metadata import version

import structlog
from aiohttp import web
from sqlalchemy.exc import SQLAlchemyError

from integrity.digests import Digest
from submit_api import audit, audit_numbers, cef, permissions, views
from submit_api.http.routes import JSON, Call, answer
from submit_api.models.system import EventList, EventView
from submit_api.refusals import InvalidRequestError
from submit_api.registry import events
from submit_api.registry.events import Query
from submit_api.registry.records import Event

MAX_EVENTS = 1000
JSONL, NDJSON = "application/jsonl", "application/x-ndjson"
FORMS = (JSONL, NDJSON, cef.MEDIA_TYPE)
_FILTERS = ("after", "about", "principal", "action", "verdict", "since", "until")
_log = structlog.get_logger("submit_api")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC_3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_MICROSECONDS = re.compile(r"[0-9]{1,16}")


async def listed(call: Call) -> web.StreamResponse:
    """Which form: the first of ours that the caller accepts, whatever weight is given to it. HEAD exports nothing."""
    accepted = [part.partition(";")[0].strip().lower() for part in call.request.headers.get("Accept", "").split(",")]
    media_type = next((one for one in accepted if one in _FORMS or one == JSON), JSON)
    if media_type in _FORMS and call.request.method == "GET":
        return await _export(call, media_type)
    return await _page(call)


async def _page(call: Call) -> web.Response:
    wanted, limit = _wanted(call), call.number("limit", 100, most=MAX_EVENTS)
    async with call.service.database.read() as tx:
        found = await events.page(tx, wanted, limit=limit)
    return answer(EventList(events=[views.copied(EventView, event) for event in found]))


async def _export(call: Call, media_type: str) -> web.StreamResponse:
    service, line = call.service, _FORMS[media_type]
    wanted, left = _wanted(call), call.number("limit", 0) or None
    async with service.database.read() as tx:
        wanted = replace(wanted, last=await events.newest(tx))
    made = web.StreamResponse(headers={"Content-Type": f"{media_type}; charset=utf-8", "Vary": "Accept"})
    await made.prepare(call.request)
    hashed, count, at = hashlib.sha512(), 0, wanted
    try:
        while left is None or left > count:
            async with service.database.read() as tx:
                found = await events.page(tx, at, limit=min(MAX_EVENTS, (left or MAX_EVENTS + count) - count))
            if not found:
                break
            data = "".join(f"{line(event)}\n" for event in found).encode()
            hashed.update(data)
            count, at = count + len(found), replace(at, after=found[-1].seq)
            await made.write(data)
        if count:
            whole = wanted.everything and left is None
            await _record(call, wanted, Digest(hashed.hexdigest()), f"{count} events as {media_type}", whole=whole)
    except SQLAlchemyError as error:
        _log.error("export_failed", error=type(error).__name__)
        raise ConnectionResetError("the export broke off") from None
    return made


async def _record(call: Call, wanted: Query, digest: Digest, what: str, *, whole: bool) -> None:
    """Only an export that leaves nothing out names its numbers as its object: that is what retention believes."""
    chosen = [f"{name} {value}" for name in _FILTERS if (value := getattr(wanted, name)) is not None]
    async with call.service.database.write() as tx:
        await audit.accepted(
            tx,
            at=call.service.now_us(),
            caller=call.caller,
            action=audit_numbers.EXPORT,
            about=audit_numbers.named(wanted.after + 1, wanted.last or 0) if whole else "audit",
            digest=str(digest),
            detail=what if whole else ", ".join([f"{what}, chosen", *chosen]),
            rule=permissions.ACTIONS["audit.read"],
        )


def _jsonl(event: Event) -> str:
    return views.copied(EventView, event).model_dump_json()


def _cef(event: Event) -> str:
    return cef.line(event, version=_version())


@cache
def _version() -> str:
    return version("dagseal")


_FORMS: dict[str, Callable[[Event], str]] = {JSONL: _jsonl, NDJSON: _jsonl, cef.MEDIA_TYPE: _cef}


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
