r"""Audit events as ArcSight's Common Event Format, one line each, for systems that collect those.

    CEF:0|vendor|product|version|signature id|name|severity|key=value key=value ...

In the header a backslash and a pipe have a backslash before them, and there is no line break. In a value of the extension a
backslash and an equals sign have one before them, a line feed is written \n and a carriage return \r. Any other control
character becomes U+FFFD: whatever an event holds, it is one line. What is empty is left out, with its label.

>>> print(line(Event(  # doctest: +NORMALIZE_WHITESPACE
...     seq=7, at=1800000000123456, principal="ann", token_id="abcdefghijkl", address="10.0.0.7",
...     action="archive.submit", object="archive:etl.py", digest="", verdict="refused", rule="nul-byte", detail="a=b|c\n",
... ), version="1"))
CEF:0|dagseal|dagseal|1|archive.submit|archive.submit refused|7|rt=1800000000123 externalId=7 act=archive.submit
outcome=failure suser=ann src=10.0.0.7 fname=etl.py cs1Label=object cs1=archive:etl.py cs2Label=rule cs2=nul-byte
cs4Label=token cs4=abcdefghijkl cs5Label=detail cs5=a\=b|c\n
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, ip_address

from submit_api.audit import ACCEPTED
from submit_api.registry.records import Event

MEDIA_TYPE = "text/x-cef"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LOW, _HIGH = "3", "7"


def line(event: Event, *, version: str) -> str:
    """The event's line, without its end."""
    accepted = event.verdict == ACCEPTED
    header = (
        "CEF:0",
        "dagseal",
        "dagseal",
        version,
        event.action,
        f"{event.action} {event.verdict}",
        _LOW if accepted else _HIGH,
    )
    pairs = [
        ("rt", str(event.at // 1000)),
        ("externalId", str(event.seq)),
        ("act", event.action),
        ("outcome", "success" if accepted else "failure"),
        ("suser", event.principal),
        *_source(event.address),
        ("fname", event.object.removeprefix("archive:") if event.object.startswith("archive:") else ""),
        *_labelled("cs1", "object", event.object),
        *_labelled("cs2", "rule", event.rule),
        *_labelled("cs3", "digest", event.digest),
        *_labelled("cs4", "token", event.token_id),
        *_labelled("cs5", "detail", event.detail),
    ]
    extension = " ".join(f"{key}={_value(value)}" for key, value in pairs if value)
    return "|".join(_field(field) for field in header) + "|" + extension


def _source(address: str) -> list[tuple[str, str]]:
    """`src` is for IPv4 only."""
    try:
        found = ip_address(address)
    except ValueError:
        return []
    return [("src", address)] if isinstance(found, IPv4Address) else _labelled("c6a2", "Source IPv6 Address", address)


def _labelled(key: str, label: str, value: str) -> list[tuple[str, str]]:
    return [(f"{key}Label", label), (key, value)] if value else []


def _field(text: str) -> str:
    plain = _CONTROL.sub("\ufffd", re.sub(r"[\r\n]+", " ", text))
    return plain.replace("\\", "\\\\").replace("|", "\\|")


def _value(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("=", "\\=").replace("\n", "\\n").replace("\r", "\\r")
    return _CONTROL.sub("\ufffd", escaped)
