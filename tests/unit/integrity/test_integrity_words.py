"""Canonical JSON, digests, names, fields, frames, errors: and every doctest of the package."""

from __future__ import annotations

import doctest
import importlib
import json
import pkgutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

import integrity
from integrity import canonical, errors, fields, messages, names
from integrity.digests import Digest
from integrity.errors import DigestMismatchError, MalformedError, UnsafeArchiveError

MODULES = sorted(module.name for module in pkgutil.iter_modules(integrity.__path__))


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_the_docstrings(module: str) -> None:
    assert doctest.testmod(importlib.import_module(f"integrity.{module}")).failed == 0


# canonical JSON

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
integers = st.integers(1 - canonical.INTEGER_LIMIT, canonical.INTEGER_LIMIT - 1)
values = st.recursive(
    st.none() | st.booleans() | integers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_canonical_round_trip(value: object) -> None:
    data = canonical.dump(value)
    assert canonical.load(data, max_bytes=len(data)) == value
    assert json.loads(data) == value


@given(values, values)
def test_canonical_is_unique(one: object, two: object) -> None:
    def key(value: object) -> str:
        return json.dumps(value, sort_keys=True)

    assert (canonical.dump(one) == canonical.dump(two)) == (key(one) == key(two))


@given(values, st.integers(0, 3), st.booleans())
def test_other_spellings_are_refused(value: object, indent: int, ascii_only: bool) -> None:
    spelled = json.dumps(value, indent=indent or None, ensure_ascii=ascii_only).encode()
    if spelled != canonical.dump(value):
        with pytest.raises(MalformedError):
            canonical.load(spelled, max_bytes=len(spelled))


@given(st.binary(max_size=40) | st.text('{}[]",:0123456789.eE+-truefalsn \\u', max_size=30).map(str.encode))
def test_what_is_read_is_what_would_be_written(data: bytes) -> None:
    try:
        value = canonical.load(data, max_bytes=100)
    except MalformedError:
        return
    assert canonical.dump(value) == data


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"",
            b" 1",
            b"1 ",
            b"1.0",
            b"1e3",
            b"-0",
            b"01",
            b"NaN",
            b"Infinity",
            b"9007199254740992",
            b"-9007199254740992",
        ),
        *(
            b'{"a":1,"a":1}',
            b'{"b":1,"a":1}',
            b'"\\u0061"',
            b'"\\/"',
            b'"\\ud800"',
            b'"\xff"',
            b"\xef\xbb\xbf1",
            b"\xff",
        ),
        *(
            b"[" * 100_000,
            b"[" * 5000 + b"]" * 5000,
            b"1" * 5000,
            b"1." + b"1" * 5000,
            b'"\x7f',
            b"nul",
            b"{1:2}",
            b"[1,]",
        ),
    ],
    ids=lambda data: repr(data[:20]),
)
def test_not_canonical(data: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        canonical.load(data, max_bytes=1 << 20)
    assert len(str(caught.value)) < 200


def test_length_is_checked_first() -> None:
    assert canonical.load(b"123", max_bytes=3) == 123
    with pytest.raises(MalformedError, match="4 bytes, the limit is 3"):
        canonical.load(b"1234", max_bytes=3)


def deep() -> list[object]:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [1.0, b"", (1,), {1: 2}, {"a": {None: 1}}, "\ud800", {"\ud800": 1}, 2**53, 10**5000, {1}],
    ids=lambda value: type(value).__name__,
)
def test_no_canonical_form(value: object) -> None:
    with pytest.raises(MalformedError):
        canonical.dump(value)


def test_too_deep() -> None:
    with pytest.raises(MalformedError, match="nested too deeply"):
        canonical.dump(deep())


# digests


def test_digest_spellings() -> None:
    digest = Digest.of(b"dag")
    assert Digest.parse(str(digest)) == Digest.from_repr_digest(f" {digest.repr_digest} ") == digest
    assert Digest.of(memoryview(b"dag")) == digest


@pytest.mark.parametrize(
    "text", ["", "sha512:", "sha256:" + "0" * 128, "sha512:" + "0" * 127, "sha512:" + "A" * 128, "0" * 128]
)
def test_not_a_digest(text: str) -> None:
    with pytest.raises(MalformedError):
        Digest.parse(text)


def test_not_a_repr_digest() -> None:
    good = Digest.of(b"").repr_digest
    stray = good[: -len("g==:") - 0]
    for text in ("", good[:-1], good.replace("512", "256"), good + ", " + good, stray + "h==:", good.replace("==", "")):
        if text != good:
            with pytest.raises(MalformedError):
                Digest.from_repr_digest(text)


def test_a_digest_requires_itself() -> None:
    Digest.of(b"1").require(Digest.of(b"1"), "it")
    with pytest.raises(DigestMismatchError, match=r"^the blob is sha512:.*, not the recorded sha512:"):
        Digest.of(b"1").require(Digest.of(b"2"), "the blob")


# names

NAMES = {
    "archive": (
        ["etl.py", "a-b.zip", "_.py"],
        ["etl", ".py", "a/b.py", "a.PY", "é.py", "x" * 200 + ".py", "a.py\n", "-a.py"],
    ),
    "dag_id": (["etl", "a.b-c", "日本"], ["", "a b", "a/b", "x" * 251, "a\n", ".", ".."]),
    "task_id": (["group.task"], ["a:b", ".."]),
    "run_id": (["manual__2026-11-22T00:00:00+00:00", "a~b"], ["a b", "a/b", "é", "."]),
    "queue": (["default"], ["a b", ".."]),
    "unix user": (["etl", "_apt", "www-data"], ["0", "1000", "Etl", "-a", "a" * 33, "root\n", "+1"]),
    "principal": (
        ["ada@example.org", "corp:ada", "c" * 20 + ":" + "a" * 79],
        [
            "Ada",
            ".a",
            "a/b",
            "a" * 101,
            "corp:",
            ":ada",
            "corp:Ada",
            "corp:@ada",
            "a:b:c",
            "co.rp:ada",
            "c" * 21 + ":ada",
            "corp:" + "a" * 80,
        ],
    ),
    "local principal": (["ada@example.org", "a" * 100], ["Ada", "corp:ada", "corp:@ada", "a" * 101]),
    "group": (
        ["team-1", "corp:ada", "corp:@engineers", "c" * 20 + ":" + "a" * 79, "c" * 20 + ":@" + "a" * 78],
        ["", "-", "@engineers", "corp:@", "corp:@@a", "corp:Ada"],
    ),
    "worker": (["host-1.local"], ["a@b"]),
    "connection": (["warehouse", "a/b", "a:b"], ["a b", "", "a\x1b"]),
    "variable": (["a b", "é"], ["", "a\n", "a\x9b", "a\u202e", "\ud800"]),
    "id": (["0" * 32], ["0" * 31, "A" * 32, "g" * 32]),
}


@pytest.mark.parametrize("kind", NAMES)
def test_names(kind: str) -> None:
    good, bad = NAMES[kind]
    for name in good:
        assert names.check(kind, name) == name
    for name in [*bad, None, 1, b"etl"]:
        with pytest.raises(MalformedError, match="is not a good name for"):
            names.check(kind, name)


# fields


def test_fields_are_read_once_and_strictly() -> None:
    read = fields.Fields({"t": "abc", "i": 1, "b": True, "l": [1], "n": None, "y": "YQ==", "o": "x"}, "thing")
    assert read.keys() == ["b", "i", "l", "n", "o", "t", "y"]
    assert read.text("t") == "abc" and read.integer("i") == 1 and read.boolean("b") is True
    assert read.items("l", max_items=1) == [1] and read.binary("y", max_bytes=1) == b"a"
    assert read.optional("n", read.text) is None and read.optional("o", read.text) == "x"
    read.done()
    with pytest.raises(MalformedError, match="thing lacks 't'"):
        read.text("t")


@pytest.mark.parametrize(
    ("value", "reader", "words"),
    [
        (1, lambda f: f.text("k"), "is to be str, not int"),
        ("abcd", lambda f: f.text("k", max_chars=3), "4 characters, the limit is 3"),
        (True, lambda f: f.integer("k"), "is to be int, not bool"),
        (-1, lambda f: f.integer("k"), "is -1, the least is 0"),
        (1, lambda f: f.boolean("k"), "is to be bool"),
        ([1, 2], lambda f: f.items("k", max_items=1), "2 items, the limit is 1"),
        ("c", lambda f: f.choice("k", ("a", "b")), "one of a, b, not 'c'"),
        ("YR==", lambda f: f.binary("k", max_bytes=9), "not canonical base64"),
        ("YQ", lambda f: f.binary("k", max_bytes=9), "is not base64"),
        ("é", lambda f: f.binary("k", max_bytes=9), "is not base64"),
        ("YWJjZA==", lambda f: f.binary("k", max_bytes=3), "8 characters, the limit is 4"),
        ("YWJj", lambda f: f.binary("k", max_bytes=2), "is 3 bytes, the limit is 2"),
        (1, lambda f: f.done(), "unknown fields: k"),
    ],
)
def test_a_field_is_refused(value: object, reader: object, words: str) -> None:
    with pytest.raises(MalformedError, match=words):
        reader(fields.Fields({"k": value}, "thing"))  # type: ignore[operator]


def test_only_objects_have_fields() -> None:
    with pytest.raises(MalformedError, match="thing is to be an object, not list"):
        fields.Fields([], "thing")


# frames


@given(st.dictionaries(st.sampled_from(["a", "b"]), values), st.integers(0, messages.MAX_FDS))
def test_frames(content: dict[str, object], fds: int) -> None:
    frame = messages.encode("job", fds=fds, **content)
    assert messages.body_length(frame[:4]) == len(frame) - 4
    message = messages.decode(frame[4:])
    assert (message.kind, message.fds) == ("job", fds)
    assert {key: message.fields.take(key) for key in content} == content
    message.fields.done()


def test_frames_over_their_limits() -> None:
    with pytest.raises(MalformedError, match="over the limit"):
        messages.encode("x", text="a" * messages.MAX_FRAME_BYTES)
    with pytest.raises(MalformedError, match="6 descriptors"):
        messages.decode(canonical.dump({"kind": "x", "fds": 6}))
    for header in (bytes(4), b"\xff" * 4):
        with pytest.raises(MalformedError, match="is announced"):
            messages.body_length(header)


# errors


def test_errors_have_slugs_of_their_own() -> None:
    classes = [
        found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, errors.DagsealError)
    ]
    assert len({found.slug for found in classes}) == len(classes)
    error = UnsafeArchiveError("zip-crc", "broken", "a.py")
    assert (str(error), error.rule, error.detail, error.entry) == ("a.py: broken", "zip-crc", "broken", "a.py")
    assert str(UnsafeArchiveError("zip-eocd", "broken")) == "broken"
    assert isinstance(error, errors.SecurityError)
    assert not isinstance(errors.InvalidArchiveError("no-dag-found", "none"), errors.SecurityError)
