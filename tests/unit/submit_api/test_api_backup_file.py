"""The file of a backup: what was written is read, and nothing that is cut, moved or made longer is taken for one."""

from __future__ import annotations

import doctest
import io
import tarfile

import pytest

from integrity.errors import DagsealError, MalformedError, SignatureError
from submit_api import backup_file
from submit_api.backup_file import Head, Reader, Writer
from vocabulary.keys import KeyRing, SigningKey

KEY = SigningKey(b"\x07" * 32)
RING = KeyRing([KEY.public])
HEAD = Head(id="0" * 32, revision="0004", made_at=1)
MEMBERS = {
    "keys/rows": b"00\n",
    "rows/tokens/0": b'{"a":1}\n',
    f"blobs/{'ab' * 64}": b"x" * 700,
    f"logs/{'0' * 32}": b"log",
}


def made(members: dict[str, bytes] = MEMBERS, key: SigningKey = KEY) -> bytes:
    file = io.BytesIO()
    writer = Writer(file, HEAD)
    for name, data in members.items():
        writer.add(name, data)
    writer.finish(key)
    return file.getvalue()


def read(data: bytes) -> dict[str, bytes]:
    reader = Reader(io.BytesIO(data))
    found = {f"keys/{name}": key for name, key in reader.keys.items()}
    found |= {part.name: part.read() for part in reader.parts()}
    reader.finish(RING)
    assert reader.head == HEAD
    return found


def test_the_example_holds() -> None:
    assert doctest.testmod(backup_file).failed == 0


def test_what_was_written_is_read() -> None:
    assert read(made()) == MEMBERS
    assert read(made({})) == {}


def test_parts_that_nobody_reads_are_counted_all_the_same() -> None:
    reader = Reader(io.BytesIO(made()))
    assert [part.name for part in reader.parts()] == list(MEMBERS)[1:]
    reader.finish(RING)


def test_a_file_that_ends_anywhere_before_its_signature_is_refused() -> None:
    whole = made()
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        end = tar.getmember("end.json")
    for length in range(0, end.offset_data + end.size, 64):
        with pytest.raises(MalformedError):
            read(whole[:length])


def test_a_flipped_byte_in_any_member_is_refused() -> None:
    whole = made()
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        places = [entry.offset_data + entry.size // 2 for entry in tar]
    for place in places:
        with pytest.raises(DagsealError):
            read(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])


def test_members_in_another_order_are_refused() -> None:
    members = list(MEMBERS.items())
    swapped = made(dict([members[0], members[2], members[1], members[3]]))
    whole = made()
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        end = tar.extractfile("end.json")
        assert end is not None
        envelope = end.read()
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(swapped)) as old, tarfile.open(fileobj=out, mode="w") as new:
        for entry in old:
            file = old.extractfile(entry)
            assert file is not None
            data = envelope if entry.name == "end.json" else file.read()
            entry.size = len(data)
            new.addfile(entry, io.BytesIO(data))
    with pytest.raises(MalformedError, match="a part of it was changed, moved or left out"):
        read(out.getvalue())


def test_another_key_signs_another_services_backups() -> None:
    with pytest.raises(SignatureError):
        read(made(key=SigningKey(b"\x08" * 32)))


@pytest.mark.parametrize(
    "name", ["../evil", "/rows/tokens/0", "rows/tokens", "blobs/ab", "rows/tokens/0\n", "logs/../x"]
)
def test_a_name_without_a_place_is_refused(name: str) -> None:
    with pytest.raises(MalformedError, match="has no place in one"):
        read(made({name: b""}))


def test_what_follows_the_signature_is_refused() -> None:
    file = io.BytesIO()
    writer = Writer(file, HEAD)
    writer._member("end.json", io.BytesIO(b""), 0)
    writer.add("rows/tokens/0", b"{}\n")
    writer.finish(KEY)
    with pytest.raises(MalformedError, match="has no place in one"):
        read(file.getvalue())
