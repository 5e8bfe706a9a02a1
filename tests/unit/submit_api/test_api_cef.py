"""CEF, read back by a reader that is not ours: what a hostile name holds stays a value, on one line."""

from __future__ import annotations

import doctest
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from submit_api import cef
from submit_api.registry.records import Event

EVENT = Event(
    seq=42, at=1_800_000_000_999_999, principal="ann", token_id="abcdefghijkl", address="192.0.2.7",
    action="launch.create", object="launch:" + "0" * 32, digest="sha512:" + "a" * 128, verdict="accepted",
    rule="3" * 32, detail="etl.load as etl",
)  # fmt: skip
HOSTILE = [
    "a|b", "a=b", "a\\b", "\\", "\\\\|\\=", "suser=root act=none", " act=x", "x src=10.0.0.1", "a\nCEF:0|x|x|1|x|x|0|",
    "a\r\nb", "\\n", "\\r", "a\x00b\x1b[31m", "\x85\u2028\u2029", "naïve — 日本 🦊", "  spaces  ", "=", "|", "\t", "cs1Label=x",
]  # fmt: skip


def read(line: str) -> tuple[list[str], dict[str, str]]:
    """The header's seven fields and the extension, by the rules of the format alone."""
    assert "\n" not in line and "\r" not in line
    *header, extension = _hidden(line).split("|", 7)
    fields = [_shown(field) for field in header]
    starts = list(re.finditer(r"(?:^| )([A-Za-z0-9]+)=", extension))
    found = {}
    for at, start in enumerate(starts):
        end = starts[at + 1].start() if at + 1 < len(starts) else len(extension)
        found[start[1]] = _shown(extension[start.end() : end])
    return fields, found


def _hidden(text: str) -> str:
    """Escaped characters as private ones, so that a bare pipe or equals sign is one that separates."""
    return re.sub(r"\\(.)", lambda found: chr(0xE000 + ord(found[1])), text)


def _shown(text: str) -> str:
    escapes = {"n": "\n", "r": "\r"}
    return "".join(
        escapes.get(chr(ord(c) - 0xE000), chr(ord(c) - 0xE000)) if 0xE000 <= ord(c) < 0xE100 else c for c in text
    )


def plain(text: str) -> str:
    """What becomes of control characters that CEF has no way to write."""
    return re.sub(r"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]", "\ufffd", text)


def test_the_example_of_the_format() -> None:
    assert doctest.testmod(cef).attempted == 1
    assert doctest.testmod(cef).failed == 0


def test_each_part_of_an_event_has_its_key() -> None:
    header, found = read(cef.line(EVENT, version="1.2"))
    assert header == ["CEF:0", "dagseal", "dagseal", "1.2", "launch.create", "launch.create accepted", "3"]
    assert found == {
        "rt": "1800000000999", "externalId": "42", "act": "launch.create", "outcome": "success", "suser": "ann",
        "src": "192.0.2.7", "cs1Label": "object", "cs1": EVENT.object, "cs2Label": "rule", "cs2": EVENT.rule,
        "cs3Label": "digest", "cs3": EVENT.digest, "cs4Label": "token", "cs4": "abcdefghijkl", "cs5Label": "detail",
        "cs5": EVENT.detail,
    }  # fmt: skip
    refused, found = read(cef.line(replace(EVENT, verdict="refused"), version="1"))
    assert (refused[5:], found["outcome"]) == (["launch.create refused", "7"], "failure")


def test_an_address_that_is_no_ipv4_and_what_is_empty() -> None:
    _, six = read(cef.line(replace(EVENT, address="2001:db8::7"), version="1"))
    assert "src" not in six
    assert (six["c6a2Label"], six["c6a2"]) == ("Source IPv6 Address", "2001:db8::7")
    nobody = replace(EVENT, principal="", token_id="", address="", digest="", rule="", detail="", object="audit")
    _, found = read(cef.line(nobody, version="1"))
    assert set(found) == {"rt", "externalId", "act", "outcome", "cs1Label", "cs1"}
    assert "src" not in read(cef.line(replace(EVENT, address="x src=10.0.0.1"), version="1"))[1]
    assert read(cef.line(replace(EVENT, object="archive:etl.py"), version="1"))[1]["fname"] == "etl.py"


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("field", ["principal", "object", "detail", "rule", "digest", "token_id"])
def test_a_hostile_value_is_read_back_as_it_is(field: str, text: str) -> None:
    usual = read(cef.line(EVENT, version="1"))
    changed: dict[str, Any] = {field: text}
    header, found = read(cef.line(replace(EVENT, **changed), version="1"))
    key = {"principal": "suser", "object": "cs1", "detail": "cs5", "rule": "cs2", "digest": "cs3", "token_id": "cs4"}[
        field
    ]
    assert found.pop(key) == plain(text)
    assert header == usual[0]
    assert found == {other: value for other, value in usual[1].items() if other != key}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_action_or_verdict_stays_in_the_header(text: str) -> None:
    header, found = read(cef.line(replace(EVENT, action=text, verdict=text), version="1"))
    shown = plain(re.sub(r"[\r\n]+", " ", text))
    assert header == ["CEF:0", "dagseal", "dagseal", "1", shown, f"{shown} {shown}", "7"]
    assert (found["act"], found["outcome"], found["suser"]) == (plain(text), "failure", "ann")


texts = st.text(st.characters(exclude_categories=["Cs", "Co"]), max_size=40) | st.text("\\|=\n\r nsact", max_size=20)


@given(texts, texts, texts)
def test_any_text_is_one_line_and_comes_back(principal: str, about: str, detail: str) -> None:
    event = replace(EVENT, principal=principal, object=about, detail=detail)
    written = cef.line(event, version="1")
    assert len(written.splitlines()) == 1 and written.encode()
    _, found = read(written)
    assert (found.get("suser", ""), found.get("cs1", ""), found.get("cs5", "")) == (
        plain(principal), plain(about), plain(detail),
    )  # fmt: skip
