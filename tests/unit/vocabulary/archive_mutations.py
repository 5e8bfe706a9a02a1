"""Zips made up by hypothesis: well built, then with a lie or two, then with damaged bytes.

The lies are few, so that each is met alone and what is accepted is much.
"""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import strategies as st

from tests.vectors.archives.zipbuild import DAG, Entry, build, deflate

LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
MAGICS = (LOCAL, CENTRAL, END, b"PK\6\6", b"PK\6\7", b"PK\7\x08")
NUMBERS = (0, 1, 2, 5, 8, 9, 12, 20, 45, 255, 256, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)
NAMES = (
    *(
        "etl.py",
        "a.py",
        "b.py",
        "pkg/__init__.py",
        "pkg/a.py",
        "pkg/",
        "pkg/data/",
        "pkg/data/q.sql",
        "README",
        "readme",
    ),
    *(
        "pkg",
        "../a.py",
        "/a.py",
        "C:a.py",
        "a\\b.py",
        "a\0.py",
        "./a.py",
        "a//b.py",
        "é.txt",
        "e\u0301.txt",
        "ﬁ.txt",
        "fi.txt",
    ),
    *(
        "a.pth",
        "a.pyc",
        "a.so",
        "__pycache__/a",
        "sitecustomize.py",
        "os.py",
        "airflow/a.py",
        "x.zip",
        "nul",
        "a.",
        "日本.py",
    ),
)
EXTRAS = (
    struct.pack("<HHBL", 0x5455, 5, 1, 0),
    struct.pack("<HHBBLBL", 0x7875, 11, 1, 4, 0, 4, 0),
    struct.pack("<HHQQ", 1, 16, 5, 5),
    struct.pack("<HHBL", 0x7075, 12, 1, 0) + b"evil.py",
    struct.pack("<HH", 0xCAFE, 0),
    b"\x55",
)


LIES = (
    "name",
    "local name",
    "local field",
    "field",
    "extra",
    "comment",
    "packed",
    "hidden",
    "absent",
    "gap",
    "twin",
    "end",
)
FIELDS = {
    "crc": 4,
    "size": 4,
    "packed_size": 4,
    "offset": 4,
    "disk": 2,
    "method": 2,
    "flags": 2,
    "version": 2,
    "mode": 2,
}
numbers = st.sampled_from(NUMBERS)
names = st.sampled_from(NAMES[:10]) | st.from_regex(r"[a-z]{1,8}(/[a-zé]{1,8})?\.(py|sql)", fullmatch=True)
texts = st.sampled_from([DAG, b"", b"x = 1\n", b"select 1\n" * 50]) | st.text(max_size=50).map(str.encode)
contents = st.sampled_from([END + b"\0" * 18, b"\xff"]) | st.binary(max_size=200)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    """An honest one."""
    name = draw(names)
    folder = name.endswith("/")
    return Entry(
        name=name.encode(),
        data=b"" if folder else draw(texts if name.endswith(".py") else texts | contents),
        method=draw(st.sampled_from([0, 8])),
        flags=0 if name.isascii() else 0x800,
        mode=0o040755 if folder else 0o100644,
        attributes=0x10 if folder else 0,
        extra=draw(st.just(b"") | st.sampled_from(EXTRAS[:2])),
    )


def tell(draw: st.DrawFn, lie: str, made: list[Entry], end: dict[str, Any]) -> None:
    """One lie, about one entry or in the end record."""
    entry = draw(st.sampled_from(made))
    match lie:
        case "name":
            entry.name = draw(st.sampled_from(NAMES) | st.text(max_size=20)).encode("utf-8", "surrogatepass")
            entry.flags = draw(st.sampled_from([0, 0x800]))
        case "local name":
            entry.local = {"name": draw(st.sampled_from([b"evil.py", entry.name.upper(), b"a" * len(entry.name)]))}
        case "local field":
            field = draw(st.sampled_from(["version", "flags", "method", "crc", "packed", "size"]))
            entry.local = {field: draw(st.integers(0, 0xFFFF))}
        case "field":
            field = draw(st.sampled_from(list(FIELDS)))
            setattr(entry, field, draw(numbers) & ((1 << 8 * FIELDS[field]) - 1))
        case "extra":
            entry.extra = draw(st.sampled_from(EXTRAS))
            entry.central_extra = draw(st.none() | st.sampled_from(EXTRAS))
        case "comment":
            entry.comment = b"hello"
        case "packed":
            entry.packed = draw(st.binary(max_size=50) | st.just(deflate(entry.data) + b"hidden"))
        case "hidden":
            entry.listed = False
        case "absent":
            entry.written = False
        case "gap":
            entry.before = draw(st.binary(min_size=1, max_size=9))
        case "twin":
            other = draw(st.sampled_from([entry.name, entry.name.upper(), entry.name + b"/", entry.name + b"/a"]))
            made.append(Entry(name=other, data=draw(texts), flags=entry.flags))
        case "end":
            end["size"] = draw(numbers)
            for field in draw(st.sets(st.sampled_from(["disk", "here", "count"]))):
                end[field] = draw(numbers) & 0xFFFF


@st.composite
def built(draw: st.DrawFn) -> bytes:
    """A zip of some entries, one of them Python, with at most two lies."""
    made = [Entry(), *draw(st.lists(entries(), max_size=3, unique_by=lambda entry: entry.name))]
    end: dict[str, Any] = {}
    for lie in draw(st.lists(st.sampled_from(LIES), max_size=2)):
        tell(draw, lie, made, end)
    around = {"lead": b"", "tail": b"", "gap": b""}
    if draw(st.integers(0, 15)) == 11:  # not 0, which hypothesis likes
        around[draw(st.sampled_from(list(around)))] = draw(st.binary(min_size=1, max_size=30))
        end["comment"] = draw(st.sampled_from([b"", b"hello", END + b"\0" * 18]))
    return build(*draw(st.permutations(made)), end=end, **around)


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """A zip of which some bytes are changed, mostly in its headers."""
    data = bytearray(draw(whole))
    for _ in range(draw(st.integers(1, 3))):
        heads = [at + draw(st.integers(0, 45)) for magic in MAGICS for at in _all(data, magic)]
        at = draw(st.sampled_from(heads) if heads and draw(st.booleans()) else st.integers(0, max(len(data) - 1, 0)))
        match draw(st.integers(0, 5)):
            case 0 if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case 1:
                data[at : at + 2] = (draw(numbers) & 0xFFFF).to_bytes(2, "little")
            case 2:
                data[at : at + 4] = draw(numbers).to_bytes(4, "little")
            case 3:
                data[at:at] = draw(st.binary(max_size=8) | st.sampled_from(MAGICS))
            case 4:
                del data[at : at + draw(st.integers(1, 8))]
            case 5:
                other = draw(whole)
                data[at:] = other[draw(st.integers(0, len(other))) :]
    return bytes(data)


def _all(data: bytearray, magic: bytes) -> list[int]:
    found, at = [], data.find(magic)
    while at >= 0:
        found.append(at)
        at = data.find(magic, at + 1)
    return found


archives_of_all_kinds = st.one_of(built(), built(), built(), damaged(built()), st.binary(max_size=300))
