"""What `submit_api.blobs.store` promises, of the folder and of the bucket alike."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import pytest

from integrity.digests import Digest
from integrity.errors import DigestMismatchError, NotFoundError
from submit_api.blobs import BlobStore
from submit_api.blobs.local import path_of
from submit_api.blobs.opening import open_store
from submit_api.settings import load
from tests import s3

DATA = b"some bytes of an archive"
LARGE = os.urandom(9 * 1024 * 1024 + 3)
OWNER = "a" * 64
WRONG = {"flipped": b"S" + DATA[1:], "shorter": DATA[:-1], "longer": DATA + b"x", "empty": b"", "other": LARGE}


class Peer(Protocol):
    """Whoever else gets at what is stored."""

    def put(self, key: str, data: bytes) -> None: ...
    def get(self, key: str) -> bytes | None: ...
    def delete(self, key: str) -> None: ...
    def keys(self) -> list[str]: ...


class FolderPeer:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, key: str, data: bytes) -> None:
        (self.folder / key).parent.mkdir(exist_ok=True)
        (self.folder / key).write_bytes(data)

    def get(self, key: str) -> bytes | None:
        return (self.folder / key).read_bytes() if (self.folder / key).exists() else None

    def delete(self, key: str) -> None:
        (self.folder / key).unlink()

    def keys(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture(params=["folder", "bucket"])
def peer(request: pytest.FixtureRequest, tmp_path: Path) -> Peer:
    if request.param == "folder":
        return FolderPeer(tmp_path / "blobs")
    bucket: s3.Bucket = request.getfixturevalue("bucket")
    return bucket


@pytest.fixture
async def store(peer: Peer, tmp_path: Path) -> AsyncIterator[BlobStore]:
    section = peer.section() if isinstance(peer, s3.Bucket) else {}
    opened = open_store(load(api={"state_folder": str(tmp_path)}, blobs=section), OWNER)
    yield opened
    opened.close()


async def published(store: BlobStore, data: bytes) -> bool:
    with store.upload() as upload:
        for at in range(0, len(data), 100_000):
            await upload.write(data[at : at + 100_000])
        assert await upload.finish() == Digest.of(data)
        return await store.publish(upload)


async def whole(store: BlobStore, data: bytes, first: int = 0, last: int | None = None) -> bytes:
    end = len(data) - 1 if last is None else last
    return b"".join([piece async for piece in store.read(Digest.of(data), first, end)])


def key(data: bytes) -> str:
    return path_of(Digest.of(data))


@pytest.mark.parametrize("data", [DATA, LARGE], ids=["small", "large"])
async def test_what_was_published_is_there_once_and_whole(store: BlobStore, peer: Peer, data: bytes) -> None:
    assert await published(store, data)
    assert not await published(store, data)
    assert peer.keys() == [key(data)] and peer.get(key(data)) == data
    await store.verify(Digest.of(data))
    assert await whole(store, data) == data
    assert await whole(store, data, 3, 9) == data[3:10]
    assert await whole(store, data, len(data) - 1) == data[-1:]


async def test_many_are_published_together(store: BlobStore, peer: Peer) -> None:
    """Also bytes that are there, and the same ones twice."""
    assert await published(store, DATA)
    bodies = [b"%d" % (number % 20) for number in range(30)] + [DATA]
    async with AsyncExitStack() as stack:
        uploads = [stack.enter_context(store.upload()) for _ in bodies]
        for upload, data in zip(uploads, bodies, strict=True):
            await upload.write(data)
            await upload.finish()
        await store.publish_all(uploads)
    assert set(peer.keys()) == {key(data) for data in bodies}
    for data in bodies:
        assert peer.get(key(data)) == data


async def test_pieces_meet_wherever_they_begin(store: BlobStore) -> None:
    await published(store, LARGE)
    for first, last in ((1, 4 * 1024 * 1024), (4 * 1024 * 1024 - 1, 8 * 1024 * 1024 + 1), (5_000_000, len(LARGE) - 1)):
        assert await whole(store, LARGE, first, last) == LARGE[first : last + 1]


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_bad_blob_is_seen_and_replaced(store: BlobStore, peer: Peer, wrong: str) -> None:
    digest = Digest.of(DATA)
    peer.put(key(DATA), WRONG[wrong])
    with pytest.raises(DigestMismatchError):
        await store.verify(digest)
    if wrong != "longer":  # what it begins with has the digest
        with pytest.raises(DigestMismatchError):
            digest.require(Digest.of(await whole(store, DATA)), "what was read")
    assert await published(store, DATA), "it is new"
    assert peer.get(key(DATA)) == DATA
    await store.verify(digest)
    assert not await published(store, DATA)


@pytest.mark.parametrize("wrong", ["flipped", "shorter", "empty"])
async def test_a_bad_small_blob_is_never_given_out(store: BlobStore, peer: Peer, wrong: str) -> None:
    peer.put(key(DATA), WRONG[wrong])
    with pytest.raises(DigestMismatchError):
        await store.small(Digest.of(DATA), len(DATA))
    peer.put(key(DATA), DATA)
    assert await store.small(Digest.of(DATA), len(DATA)) == DATA


async def test_a_small_blob_is_kept_in_memory_until_it_is_removed(store: BlobStore, peer: Peer) -> None:
    await published(store, DATA)
    assert await store.small(Digest.of(DATA), len(DATA)) == DATA
    peer.delete(key(DATA))
    assert await store.small(Digest.of(DATA), len(DATA)) == DATA
    await store.remove(Digest.of(DATA))
    with pytest.raises(NotFoundError):
        await store.small(Digest.of(DATA), len(DATA))


async def test_a_large_blob_is_not_small(store: BlobStore) -> None:
    await published(store, LARGE)
    assert await store.small(Digest.of(LARGE), len(LARGE)) is None


async def test_no_blob_is_not_found(store: BlobStore) -> None:
    digest = Digest.of(DATA)
    with pytest.raises(NotFoundError, match=str(digest)):
        await store.verify(digest)
    with pytest.raises(NotFoundError, match=str(digest)):
        await whole(store, DATA)
    with pytest.raises(NotFoundError, match=str(digest)):
        await store.small(digest, len(DATA))
    await store.remove(digest)


async def test_a_blob_that_ends_too_early_says_so(store: BlobStore, peer: Peer) -> None:
    peer.put(key(DATA), DATA[:5])
    with pytest.raises(DigestMismatchError, match="shorter"):
        await whole(store, DATA, 0, len(DATA) - 1)
    with pytest.raises(DigestMismatchError, match="shorter"):
        await whole(store, DATA, 5, 9)


async def test_removed_is_gone(store: BlobStore, peer: Peer) -> None:
    await published(store, DATA)
    await published(store, LARGE)
    await store.remove(Digest.of(DATA))
    assert peer.keys() == [key(LARGE)]


async def test_names_are_all_that_is_there(store: BlobStore, peer: Peer) -> None:
    await store.claim()
    await store.check_writable()
    assert [found async for found in store.names()] == []
    await published(store, DATA)
    for stray in ("stray", "ab/short"):
        peer.put(stray, b"x")
    hexadecimal = Digest.of(DATA).hex
    assert sorted([found async for found in store.names()]) == sorted(
        [("", "stray"), ("ab", "short"), (hexadecimal[:2], hexadecimal)]
    )


async def test_what_is_not_published_leaves_nothing(store: BlobStore, peer: Peer, tmp_path: Path) -> None:
    with store.upload() as upload:
        await upload.write(LARGE)
        await upload.finish()
        assert len(await store.leftovers()) == 1
    assert await store.leftovers() == [] and peer.keys() == []
    (tmp_path / "blobs" / ".tmp-x").touch()  # as a crash leaves it
    assert await store.leftovers() == [".tmp-x"]
    assert [found async for found in store.names()] == []
    assert await store.sweep() == [".tmp-x"]
    assert await store.leftovers() == []


MIB = 1024 * 1024


@pytest.mark.parametrize("size", [1, 64 * 1024, 64 * 1024 + 1, MIB, MIB + 1, len(LARGE)])
async def test_an_upload_is_read_before_it_is_published(store: BlobStore, size: int) -> None:
    """The large one from its file, and the small one, which has none, from memory."""
    data = LARGE[:size]
    with store.upload() as upload:
        for at in range(0, size, 100_000):
            await upload.write(data[at : at + 100_000])
        assert await upload.finish() == Digest.of(data)
        assert upload.read() == data
        with open(upload.open(), "rb") as file:
            assert file.read() == data
        assert len(await store.leftovers()) == (size > 64 * 1024)
    assert await store.leftovers() == []


async def test_what_a_crash_leaves_beside_a_name_is_swept(store: BlobStore, peer: Peer) -> None:
    """Where a small upload is written."""
    if not isinstance(peer, FolderPeer):
        pytest.skip("a bucket's objects are put whole")
    await published(store, DATA)
    left = f"{key(DATA)[:2]}/.tmp-x"
    peer.put(left, DATA[:3])
    assert await store.leftovers() == [left] and [name async for name in store.names()] == [tuple(key(DATA).split("/"))]
    assert await store.sweep() == [left]
    assert await store.leftovers() == [] and peer.keys() == [key(DATA)]


async def test_an_upload_that_was_left_makes_no_file_afterwards(store: BlobStore) -> None:
    """By a thread that had not begun when its request was cancelled."""
    with store.upload() as upload:
        await upload.write(LARGE[:100_000])
    upload._flush()
    assert await store.leftovers() == []


async def test_the_same_bytes_side_by_side_are_one_blob(store: BlobStore, peer: Peer) -> None:
    peer.put(key(DATA), WRONG["flipped"])
    new = await asyncio.gather(*(published(store, DATA) for _ in range(20)))
    assert any(new) and peer.keys() == [key(DATA)] and peer.get(key(DATA)) == DATA


async def test_claimed_twice_by_one_service(store: BlobStore) -> None:
    await store.claim()
    await published(store, DATA)
    await store.claim()
    await store.verify(Digest.of(DATA))
