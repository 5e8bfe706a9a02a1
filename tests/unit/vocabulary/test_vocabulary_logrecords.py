"""A log's records: read from pieces of any size, and shown whatever they are."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vocabulary.logrecords import MAX_RECORD_BYTES, Reader, encode, readable, text_of

EVENT = {"timestamp": "2026-01-31T00:00:00Z", "level": "info", "logger": "task", "event": "hello"}
SHOWN = "[2026-01-31T00:00:00Z] {INFO} task - hello\n"
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def shown(stream: bytes, *cuts: int) -> list[tuple[str, str]]:
    reader = Reader()
    ends = [0, *sorted(cuts), len(stream)]
    found = [one for start, end in pairwise(ends) for one in reader.feed(stream[start:end])]
    return [*found, ("rest", rest)] if (rest := reader.rest()) else found


@given(
    st.lists(st.tuples(st.sampled_from(["stdout", "stderr", "launcher"]), texts.filter(bool)), max_size=8), st.data()
)
def test_what_was_written_is_read_wherever_the_stream_is_cut(
    records: list[tuple[str, str]], data: st.DataObject
) -> None:
    stream = b"".join(encode(source, at, text) for at, (source, text) in enumerate(records))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    assert shown(stream, *cuts) == records
    assert text_of(stream) == "".join(text for _, text in records).encode()


def test_structured_lines_are_shown_as_people_read_them() -> None:
    more = {"rows": 3, "path": "a b", "name": "x"}
    assert readable(json.dumps(EVENT)) == SHOWN
    assert readable(json.dumps(EVENT | more)) == SHOWN[:-1] + " rows=3 path='a b' name=x\n"
    traceback = 'Traceback:\n  File "x"\nValueError: no'
    assert readable(json.dumps(EVENT | {"exception": traceback})) == f"{SHOWN}{traceback}\n"


@pytest.mark.parametrize("line", ["", "text", "[1]", "3", "null", "{", '{"a":' * 5000, '"x"', '{"event":1'])
def test_a_structured_line_that_is_none_is_shown_as_it_is(line: str) -> None:
    assert readable(line) == f"{line}\n"


def test_a_structured_line_that_was_cut_in_records_is_one_line() -> None:
    line = json.dumps(EVENT) + "\n"
    stream = encode("log", 1, line + line[:30]) + encode("stdout", 2, "between\n") + encode("log", 3, line[30:])
    assert shown(stream) == [("log", SHOWN), ("stdout", "between\n"), ("log", SHOWN)]


def test_a_structured_line_that_the_launcher_cut_off_stands_before_its_mark() -> None:
    stream = encode("log", 1, '{"event"') + encode("launcher", 1, "cut\n")
    assert shown(stream) == [("log", '{"event"\n'), ("launcher", "cut\n")]
    assert shown(encode("log", 1, '{"event"')) == [("rest", '{"event"\n')]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"printed by something old",
        b"\xff\xfe",
        b'{"at": 1,"source":"stdout","text":"x"}',
        b'{"at":1,"source":"root","text":"x"}',
        b'{"at":-1,"source":"stdout","text":"x"}',
        b'{"at":1,"more":1,"source":"launcher","text":"x"}',
        b'{"at":1,"source":"stdout","text":3}',
        b'{"at":1,"source":"stdout"}',
    ],
)
def test_what_is_no_record_is_shown_as_it_is_and_belongs_to_nobody(line: bytes) -> None:
    assert shown(line + b"\n" + encode("stdout", 1, "x\n")) == [
        ("", line.decode("utf-8", "backslashreplace") + "\n"),
        ("stdout", "x\n"),
    ]


def test_a_stream_without_an_end_of_line_is_not_kept_for_ever() -> None:
    reader = Reader()
    assert not list(reader.feed(b"x" * MAX_RECORD_BYTES))
    ((source, text),) = reader.feed(b"x")
    assert (source, len(text)) == ("", MAX_RECORD_BYTES + 2)
    half = "x" * (MAX_RECORD_BYTES // 2)
    found = [one for at in range(4) for one in reader.feed(encode("log", at, half))]
    assert [(source, len(text)) for source, text in found] == [("log", 3 * len(half) + 1)]
