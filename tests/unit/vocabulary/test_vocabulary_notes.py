"""Signed notes, checkpoints and tiles as C2SP specifies them: its examples and Go's, and every bent byte refused.

Seen to fail when weakened: `Note.of` that looks at the name alone; `Note.from_bytes` that splits at the first empty line;
`checkpoints.verify` that takes any key's signature; `TilePath.parse` without the way back.
"""

from __future__ import annotations

import base64
import json
import pathlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integrity.errors import MalformedError, SecurityError, SignatureError, StaleError
from vocabulary import checkpoints, notes, tiles
from vocabulary.checkpoints import CLOCK_SKEW_SECONDS, Checkpoint
from vocabulary.keys import SigningKey, VerifyKey
from vocabulary.notes import Note
from vocabulary.tiles import TilePath

VECTORS: dict[str, Any] = json.loads((pathlib.Path(__file__).parents[2] / "vectors" / "log" / "notes.json").read_text())
KEY, OTHER = SigningKey(b"\1" * 32), SigningKey(b"\2" * 32)
ORIGIN = checkpoints.origin_of(KEY.public)
POINT = Checkpoint(origin=ORIGIN, size=5, root=b"r" * 32, time=1_800_000_000)
NOTE = checkpoints.sign(POINT, KEY)


def key_of(text: str) -> tuple[str, VerifyKey]:
    """A verifier key as the specification writes it: its hash is to be the one that we compute."""
    name, found, encoded = text.split("+", 2)
    raw = base64.b64decode(encoded)
    assert raw[:1] == notes.ED25519
    key = VerifyKey(raw[1:])
    assert notes.key_hash(name, key).hex() == found
    return name, key


@pytest.mark.parametrize("case", VECTORS["verified"])
def test_the_examples_of_the_specification_and_of_go_verify(case: dict[str, Any]) -> None:
    data = case["note"].encode()
    note = Note.from_bytes(data)
    assert note.to_bytes() == data
    keys = [key_of(text) for text in case["keys"]]
    assert [one.name for one in note.signatures] == [name for name, _ in keys]
    everybody = [key for _, key in keys]
    for name, key in keys:
        assert note.signers(everybody, name) == [key]
        assert note.signers([KEY.public], name) == []
        changed = Note("x" + note.text, note.signatures)
        assert changed.signers(everybody, name) == []
    assert note.signers(everybody, "somebody.example/else") == []


def test_what_go_signs_we_sign() -> None:
    name, _, encoded = VECTORS["signing"]["key"].removeprefix("PRIVATE+KEY+").split("+", 2)
    key = SigningKey(base64.b64decode(encoded)[1:])
    wanted = VECTORS["signing"]["note"]
    assert notes.sign(wanted.rpartition("\n\n")[0] + "\n", name=name, key=key).to_bytes() == wanted.encode()


def test_the_examples_without_a_key_are_read() -> None:
    poem, point = (Note.from_bytes(text.encode()) for text in VECTORS["read"])
    assert poem.text.count("\n") == 4 and poem.text.endswith("sera.\n")  # the last empty line parts it
    assert [one.name for one in poem.signatures] == ["quasimodo.example/salvatore"]
    assert point.text.split("\n")[1] == "20852163"
    with pytest.raises(MalformedError):
        Checkpoint.from_text(point.text)  # no time: of this one nobody knows how old it is


LINE = NOTE.decode().rpartition("\n\n")[2]
BAD = {
    "empty": b"",
    "no empty line": POINT.text.encode() + LINE.encode(),
    "no signature": POINT.text.encode() + b"\n",
    "no newline at the end": NOTE[:-1],
    "carriage return": NOTE.replace(b"\n", b"\r\n"),
    "a tab": b"a\t\n\n" + LINE.encode(),
    "not UTF-8": b"\xff" + NOTE,
    "a hyphen for the dash": NOTE.replace("\u2014".encode(), b"-"),
    "no space after the name": f"x\n\n\u2014 name{LINE.split()[2]}\n".encode(),
    "plus in the name": f"x\n\n\u2014 a+b {LINE.split()[2]}\n".encode(),
    "no name": f"x\n\n\u2014  {LINE.split()[2]}\n".encode(),
    "a space of Unicode": f"x\n\n\u2014 a\u2003b {LINE.split()[2]}\n".encode(),
    "no padding": NOTE.replace(b"=", b""),
    "shorter than a key's hash": "x\n\n\u2014 a AAAA\n".encode(),
    "nothing after the key's hash": f"x\n\n\u2014 a {base64.b64encode(b'1234').decode()}\n".encode(),
    "too many signatures": b"x\n\n" + LINE.encode() * (notes.MAX_SIGNATURES + 1),
    "too long": b"x" * notes.MAX_NOTE_BYTES + b"\n\n" + LINE.encode(),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_note_is_malformed(case: str) -> None:
    with pytest.raises(MalformedError):
        Note.from_bytes(BAD[case])
    with pytest.raises(MalformedError):
        checkpoints.verify(BAD[case], [KEY.public])


def test_sixteen_signatures_of_others_are_no_matter() -> None:
    mine = notes.sign("text\n", name="a", key=KEY)
    others = [notes.sign("text\n", name=f"w{n}", key=SigningKey(bytes([n]) * 32)).signatures[0] for n in range(3, 19)]
    note = Note.from_bytes(Note(mine.text, (*others, *mine.signatures)).to_bytes())
    assert note.signers([OTHER.public, KEY.public], "a") == [KEY.public]


def test_a_name_or_a_text_that_cannot_be_signed() -> None:
    for name in ("", "a b", "a+b", "a\u2003b"):
        with pytest.raises(MalformedError):
            notes.sign("text\n", name=name, key=KEY)
    with pytest.raises(MalformedError):
        notes.sign("text", name="a", key=KEY)


def test_a_signature_is_of_its_kind_and_name_only() -> None:
    """The same key signs as a witness and under other names: none of these speaks for the log."""
    signed = notes.sign(POINT.text, name="other.example", key=KEY)
    renamed = notes.Signature(ORIGIN, signed.signatures[0].key_hash, signed.signatures[0].raw)
    kind = notes.Signature(ORIGIN, notes.key_hash(ORIGIN, KEY.public, notes.COSIGNATURE), signed.signatures[0].raw)
    for wrong in (signed.signatures[0], renamed, kind):
        with pytest.raises(SignatureError):
            checkpoints.verify(Note(POINT.text, (wrong,)).to_bytes(), [KEY.public])


# checkpoints


def test_a_checkpoint_is_read_as_it_was_signed() -> None:
    found = checkpoints.verify(NOTE, [OTHER.public, KEY.public], origin=ORIGIN)
    assert (found.checkpoint, found.key_id, found.note) == (POINT, KEY.public.key_id, NOTE)
    assert Checkpoint.from_text(POINT.text) == POINT
    with pytest.raises(SignatureError, match="not signed by a key"):
        checkpoints.verify(NOTE, [OTHER.public])
    with pytest.raises(SignatureError, match="not signed by a key"):
        checkpoints.verify(NOTE, [])
    with pytest.raises(SignatureError, match="followed is"):
        checkpoints.verify(NOTE, [KEY.public], origin=checkpoints.origin_of(OTHER.public))


def test_an_empty_line_more_is_another_text() -> None:
    more = NOTE.replace(b"\n\n", b"\n\n\n")
    assert Note.from_bytes(more).text == POINT.text + "\n"
    with pytest.raises(SignatureError):
        checkpoints.verify(more, [KEY.public])


def test_a_key_that_was_handed_on_signs_under_the_logs_name() -> None:
    found = checkpoints.verify(checkpoints.sign(POINT, OTHER), [KEY.public, OTHER.public], origin=ORIGIN)
    assert (found.checkpoint.origin, found.key_id) == (ORIGIN, OTHER.public.key_id)


def test_every_flipped_bit_of_a_checkpoint_is_refused() -> None:
    checkpoints.verify(NOTE, [KEY.public])
    for bit in range(8 * len(NOTE)):
        changed = bytearray(NOTE)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SecurityError):
            checkpoints.verify(bytes(changed), [KEY.public])


@pytest.mark.parametrize(
    "text",
    [
        "",
        POINT.text + "more\n",
        POINT.text.removesuffix("\n"),
        POINT.text.replace("time ", ""),
        POINT.text.replace("\n5\n", "\n05\n"),
        POINT.text.replace("\n5\n", "\n-5\n"),
        POINT.text.replace("\n5\n", "\n+5\n"),
        POINT.text.replace("\n5\n", "\n\u0665\n"),
        POINT.text.replace("\n5\n", "\n" + "9" * 17 + "\n"),
        POINT.text.replace("time ", "time 0"),
        POINT.text.replace("=", ""),
        POINT.text.replace("cnJycnJy", "cnJy"),
        POINT.text.replace("dagseal.dev", "dagseal.example"),
        POINT.text.replace(ORIGIN, ORIGIN.upper()),
    ],
)
def test_signed_and_no_checkpoint(text: str) -> None:
    with pytest.raises(MalformedError):
        Checkpoint.from_text(text)
    if text.endswith("\n"):
        name = text.partition("\n")[0]
        with pytest.raises(SecurityError):
            checkpoints.verify(notes.sign(text, name=name, key=KEY).to_bytes(), [KEY.public])


def test_a_checkpoint_longer_than_any_is_refused_before_it_is_read() -> None:
    with pytest.raises(MalformedError, match="at most"):
        checkpoints.verify(NOTE + LINE.encode() * 98, [KEY.public])


@pytest.mark.parametrize("age", [-CLOCK_SKEW_SECONDS, 0, 300])
def test_fresh(age: int) -> None:
    checkpoints.require_fresh(POINT, now=POINT.time + age, max_age_seconds=300)


@pytest.mark.parametrize(("age", "words"), [(301, "could be hidden"), (-CLOCK_SKEW_SECONDS - 1, "in the future")])
def test_not_fresh(age: int, words: str) -> None:
    with pytest.raises(StaleError, match=words):
        checkpoints.require_fresh(POINT, now=POINT.time + age, max_age_seconds=300)


# tiles

PATHS = {
    "0/000": TilePath(0, 0),
    "7/x001/x234/067": TilePath(7, 1234067),
    "entries/999": TilePath(None, 999),
    "entries/x001/000.p/1": TilePath(None, 1000, 1),
    "1/x273/163.p/255": TilePath(1, 273163, 255),
}


@pytest.mark.parametrize("path", PATHS)
def test_paths_are_written_as_the_specification_has_them(path: str) -> None:
    assert TilePath.parse(path) == PATHS[path] and str(PATHS[path]) == path


@pytest.mark.parametrize(
    "path",
    ["", "0", "8/000", "0/0", "0/0000", "0/x000/000", "0/001/000", "x0/000", "0/x001/x000", "0/000.p/0", "0/000.p/256",
     "0/000.p/01", "0/000.p/999", "0/000/", "/0/000", "0/000\n", "entries/000.p/", "0/../000", "00/000", "-1/000",
     "0/x001/x001/x001/x001/x001/000"],
)  # fmt: skip
def test_a_path_has_one_spelling(path: str) -> None:
    with pytest.raises(MalformedError):
        TilePath.parse(path)


@given(st.sampled_from([None, *range(8)]), st.integers(0, 10**15 - 1), st.integers(1, 256))
def test_every_path_is_read_back(level: int | None, number: int, width: int) -> None:
    path = TilePath(level, number, width)
    assert TilePath.parse(str(path)) == path


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=20), st.data())
def test_a_bundle_is_read_back_and_never_cut(entries: list[bytes], data: st.DataObject) -> None:
    whole = tiles.bundle(entries)
    assert tiles.entries_of(whole) == entries
    ends = {0}
    for entry in entries:
        ends.add(max(ends) + 2 + len(entry))
    cut = data.draw(st.integers(0, len(whole)))
    if cut in ends:
        assert tiles.bundle(tiles.entries_of(whole[:cut])) == whole[:cut]
    else:
        with pytest.raises(MalformedError):
            tiles.entries_of(whole[:cut])


def test_what_no_bundle_can_hold() -> None:
    assert tiles.entries_of(tiles.bundle([b"x" * tiles.MAX_ENTRY_BYTES])) == [b"x" * tiles.MAX_ENTRY_BYTES]
    for entry in (b"", b"x" * (tiles.MAX_ENTRY_BYTES + 1)):
        with pytest.raises(MalformedError):
            tiles.bundle([entry])
    for data in (b"\0\0", b"\0", b"\0\1", b"\0\1ab"):
        with pytest.raises(MalformedError):
            tiles.entries_of(data)
