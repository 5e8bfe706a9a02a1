"""T27 lying-mirror: a mirror, or the API's blob route, sends other bytes than those whose digest was signed.

The cache is the real one, over real HTTP; the liar says every byte by hand. Each lie is refused with its own error, nothing
is named, and no descriptor or unfinished file is left. A mirror that lied is left alone, and that it did is in the log; its
lie costs nobody the launch, since the API is asked next. Mirrors are sent no token.

Seen to fail when weakened: `Receiver.finish` and `open_verified` that do not compare; `_receive` without its cap; `lied` that
does not let the liar rest; `_frame` that does not compare the digest or the length; a Transport of mirrors with the token.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import structlog

from integrity.digests import Digest
from integrity.errors import DigestMismatchError, FetchError, MalformedError, NotFoundError
from tests import blob_server
from tests.blob_server import Blobs, Endless, sized, status
from tests.cache_rig import Rig, rig
from vocabulary import blobframes
from worker_cache.problems import RequestError
from worker_cache.sources import LIAR_RESTS_SECONDS

DATA = random.Random(1).randbytes(400_000)
OTHER = random.Random(2).randbytes(400_000)  # a genuine blob of another name, and of the same length
DIGEST = Digest.of(DATA)
CHUNKED = status("200 OK", "Transfer-Encoding: chunked")
Answer = Iterable["bytes | Endless"]

LIES: dict[str, tuple[Answer, type[Exception]]] = {
    "first bit": ([sized(bytes([DATA[0] ^ 1]) + DATA[1:])], DigestMismatchError),
    "last bit": ([sized(DATA[:-1] + bytes([DATA[-1] ^ 128]))], DigestMismatchError),
    "other name's blob": ([sized(OTHER)], DigestMismatchError),
    "one byte more": ([sized(DATA + b"\n")], FetchError),
    "endless, with a length": ([sized(b"", of=10**15), Endless(b"x" * 65536)], FetchError),
    "endless, in chunks": ([CHUNKED, Endless(b"10000\r\n" + b"x" * 65536 + b"\r\n")], FetchError),
    "truncated, with the true length": ([sized(DATA[:-1], of=len(DATA))], FetchError),
    "truncated, with a false one": ([sized(DATA[:-1])], FetchError),
    "truncated in a chunk": ([CHUNKED + b"20000\r\n" + DATA[:1000]], FetchError),
    "empty": ([sized(b"")], FetchError),
    "compressed": ([status("200 OK", "Content-Encoding: gzip", f"Content-Length: {len(OTHER)}", body=OTHER)],
                   DigestMismatchError),
    "a redirect": ([status("302 Found", "Location: http://127.0.0.1:9/", "Content-Length: 0")], RequestError),
    "a problem without end": ([status("500 No", "Content-Length: 99999999999"), Endless(b"x" * 65536)], FetchError),
    "a part that nobody asked for": ([status("206 Partial Content", f"Content-Range: bytes 0-9/{len(DATA)}",
                                             "Content-Length: 10", body=OTHER[:10])], FetchError),
    "404": ([blob_server.MISSING], NotFoundError),
}  # fmt: skip


def nothing_is_cached(its: Rig, *, parts: bool = False) -> None:
    assert its.named == set()
    assert parts or its.incoming == []


@pytest.mark.parametrize("lie", LIES)
async def test_the_api_lies(tmp_path: Path, lie: str) -> None:
    answer, kind = LIES[lie]
    async with blob_server.running(lambda asked: answer) as server, rig(tmp_path, server.url) as its:
        with pytest.raises(kind) as raised:
            await its.read(DATA)
        assert type(raised.value) is kind or kind is FetchError
        nothing_is_cached(its, parts=lie.startswith("truncated"))
        server.script = Blobs(DATA)
        await its.read(DATA)  # and what was kept of the lie is no obstacle


@pytest.mark.parametrize("lie", LIES)
async def test_a_mirror_lies_and_the_api_is_asked(tmp_path: Path, lie: str) -> None:
    answer, kind = LIES[lie]
    now = [1000.0]
    async with (
        blob_server.running(lambda asked: answer) as mirror,
        blob_server.running(Blobs(DATA, OTHER)) as api,
        rig(tmp_path, api.url, mirrors=(mirror.url,), clock=lambda: now[0]) as its,
    ):
        with structlog.testing.capture_logs() as logs:
            await its.read(DATA)
        before = len(mirror.asked)
        assert before >= 1 and len(api.asked) >= 1
        lied = [line for line in logs if line["event"] == "mirror lied"]
        if kind is DigestMismatchError or "byte more" in lie or "endless, " in lie:
            ((line),) = lied
            assert (line["log_level"], line["mirror"], line["digest"]) == ("error", mirror.url, str(DIGEST))
            await its.read(OTHER)
            now[0] += LIAR_RESTS_SECONDS - 1
            os.unlink(its.path(DIGEST))
            await its.read(DATA)
            assert len(mirror.asked) == before, "it was asked again too soon"
            now[0] += 2
            os.unlink(its.path(DIGEST))
            await its.read(DATA)
            assert len(mirror.asked) > before, "it is never asked again"
        else:
            assert lied == []
        assert its.incoming == []


async def test_a_mirror_is_sent_no_token_and_followed_nowhere(tmp_path: Path) -> None:
    async with blob_server.running(Blobs(DATA)) as elsewhere:
        there = status("307 Temporary Redirect", f"Location: {elsewhere.url}/sha512/{DIGEST.hex}", "Content-Length: 0")
        async with (
            blob_server.running(lambda asked: [there]) as mirror,
            blob_server.running(Blobs(DATA)) as api,
            rig(tmp_path, api.url, mirrors=(mirror.url,)) as its,
        ):
            await its.read(DATA)
            assert elsewhere.asked == []
            (asked,) = mirror.asked
            assert asked.headers.keys() == {"host", "accept", "accept-encoding", "user-agent"}
            assert api.asked[0].headers["authorization"] == "Bearer secret-token"


async def test_a_poisoned_beginning_does_not_spoil_the_honest_end(tmp_path: Path) -> None:
    """A mirror sends wrong bytes and breaks off: the API goes on with them, and then from nothing."""
    async with (
        blob_server.running(lambda asked: [sized(OTHER[:300_000], of=len(DATA))]) as mirror,
        blob_server.running(Blobs(DATA)) as api,
        rig(tmp_path, api.url, mirrors=(mirror.url,)) as its,
    ):
        await its.read(DATA)
        assert [asked.start > 0 for asked in api.asked] == [True, False]


# A batch.

SMALL = [random.Random(i).randbytes(1000 + i) for i in range(5)]
DIGESTS = [Digest.of(data) for data in SMALL]
Forge = Callable[[list[bytes]], list[bytes]]


def frame(data: bytes, *, name: bytes | None = None, size: int | None = None) -> bytes:
    return blobframes.header(Digest.of(name or data), len(data) if size is None else size) + data


def third(frames: list[bytes], other: bytes) -> list[bytes]:
    return [*frames[:2], other, *frames[3:]]


# The forged answer, which of the five are kept, and why the third is refused.
FORGED: dict[str, tuple[Forge, set[int], type[Exception]]] = {
    "wrong bytes": (lambda f: third(f, frame(SMALL[2][:-1] + b"!", name=SMALL[2])), {0, 1, 3, 4}, DigestMismatchError),
    "other name's blob": (lambda f: third(f, frame(OTHER[:1002], name=SMALL[2])), {0, 1, 3, 4}, DigestMismatchError),
    "other name": (lambda f: third(f, frame(SMALL[2], name=OTHER)), {0, 1}, MalformedError),
    "out of order": (lambda f: [f[0], f[1], f[3], f[2], f[4]], {0, 1}, MalformedError),
    "a frame twice": (lambda f: [f[0], f[1], f[1], *f[2:]], {0, 1}, MalformedError),
    "a frame is missing": (lambda f: [f[0], f[1], f[3], f[4]], {0, 1}, MalformedError),
    "longer than signed": (lambda f: third(f, frame(SMALL[2] + b"!", name=SMALL[2])), {0, 1, 3, 4}, MalformedError),
    "shorter than signed": (lambda f: third(f, frame(SMALL[2][:-1], name=SMALL[2])), {0, 1, 3, 4}, MalformedError),
    "a length that swallows the next": (
        lambda f: third(f, frame(SMALL[2], size=len(SMALL[2]) + len(f[3]))), {0, 1}, MalformedError),
    "a length that ends too soon": (lambda f: third(f, frame(SMALL[2], size=10)), {0, 1}, MalformedError),
    "a length of 0": (lambda f: third(f, frame(SMALL[2], size=0)), {0, 1}, MalformedError),
    "a length without end": (lambda f: third(f, frame(SMALL[2], size=10**15)), {0, 1}, MalformedError),
    "a length below nothing": (lambda f: third(f, f"{DIGESTS[2]} -5\n".encode() + SMALL[2]), {0, 1}, MalformedError),
    "a length of another script": (lambda f: third(f, f"{DIGESTS[2]} ١٠\n".encode() + SMALL[2]), {0, 1}, MalformedError),
    "no line": (lambda f: third(f, b"\x00" * 5000), {0, 1}, MalformedError),
    "cut in a line": (lambda f: [f[0], f[1], f[2][:50]], {0, 1}, FetchError),
    "cut in the bytes": (lambda f: [f[0], f[1], f[2][:-1]], {0, 1}, FetchError),
    "not there": (lambda f: third(f, blobframes.refusal(DIGESTS[2], "not-found")), {0, 1, 3, 4}, NotFoundError),
}  # fmt: skip


@pytest.mark.parametrize("forgery", FORGED)
async def test_a_forged_batch(tmp_path: Path, forgery: str) -> None:
    forge, kept, kind = FORGED[forgery]
    body = b"".join(forge([frame(data) for data in SMALL]))
    async with blob_server.running(lambda asked: [sized(body)]) as server, rig(tmp_path, server.url) as its:
        refused = await its.cache.prefetch([(Digest.of(data), len(data)) for data in SMALL])
        assert server.paths == ["/v1/blobs/batch"]
        assert {DIGESTS.index(Digest(name)) for name in its.named} == kept
        assert {DIGESTS.index(digest) for digest in refused} == set(range(5)) - kept
        assert type(refused[DIGESTS[2]]) is kind
        assert its.incoming == []
        assert set(its.cache.holdings().digests) == {DIGESTS[i] for i in kept}
        server.script = Blobs(*SMALL)
        for data in SMALL:
            await its.read(data)


async def test_a_batch_without_end(tmp_path: Path) -> None:
    body = b"".join(frame(data) for data in SMALL)
    async with (
        blob_server.running(lambda asked: [CHUNKED, f"{len(body):x}\r\n".encode() + body + b"\r\n",
                                           Endless(b"10000\r\n" + b"x" * 65536 + b"\r\n")]) as server,
        rig(tmp_path, server.url) as its,
    ):  # fmt: skip
        assert await its.cache.prefetch([(Digest.of(data), len(data)) for data in SMALL]) == {}
        assert len(its.named) == 5


async def test_a_batch_of_nothing_but_a_frame_without_end(tmp_path: Path) -> None:
    answer = [CHUNKED, Endless(b"10000\r\n" + b"x" * 65536 + b"\r\n")]
    async with blob_server.running(lambda asked: answer) as server, rig(tmp_path, server.url) as its:
        refused = await its.cache.prefetch([(Digest.of(data), len(data)) for data in SMALL])
        assert {type(error) for error in refused.values()} == {MalformedError} and len(refused) == 5
        nothing_is_cached(its)
