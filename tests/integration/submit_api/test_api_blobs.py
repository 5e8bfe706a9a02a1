"""Bytes by their digest: whole, in part, not again; many in one answer; and to whom they are not there.

Seen to fail when weakened: `_sizes` that looks at no mode, that forgets the retired, or that does not note what it hides;
`_pieces` that yields its last piece before it compares; `Recent` that counts nothing.
"""

from __future__ import annotations

import os
import random
from typing import Any

import aiohttp
import pytest
from api_rig import SOURCE, Answer, Api, dag_entry

from integrity.digests import Digest
from submit_api import retiring
from submit_api.blobs.recent import Recent
from vocabulary import blobframes
from vocabulary.zipwriter import pack


def zipped(size: int) -> bytes:
    """Nothing to be made smaller."""
    return pack({"etl.py": SOURCE, "noise.bin": random.Random(size).randbytes(size)})


# More than what is kept in memory, and than what is read at once.
LARGER, LARGE = zipped(400_000), zipped(2_400_000)
BODIES = {"small": SOURCE, "larger": LARGER, "large": LARGE}


async def push(api: Api, name: str, body: bytes, token: str | None = None) -> None:
    if not body.startswith(b"PK"):
        assert (await api.push(f"{name}.py", body, token=token)).status == 201
        return
    api.launcher.dags[f"{name}.zip"] = [dag_entry(name, member="etl.py")]
    assert (await api.push(f"{name}.zip", body, token=token)).status == 201


def read_frames(body: bytes) -> list[tuple[Digest, bytes | str]]:
    """Written apart from the agent's reader, after the text in `vocabulary.blobframes`."""
    found: list[tuple[Digest, bytes | str]] = []
    while body:
        line, _, body = body.partition(b"\n")
        name, said = line.decode().split(" ")
        if said.isdigit():
            found.append((Digest.parse(name), body[: int(said)]))
            body = body[int(said) :]
        else:
            found.append((Digest.parse(name), said))
    return found


async def batch(api: Api, token: str, *digests: Digest | str) -> Answer:
    return await api.call("POST", "/v1/blobs/batch", token=token, json={"digests": [str(one) for one in digests]})


def frames(answer: Answer) -> list[tuple[Digest, bytes | str]]:
    assert answer.status == 200, answer.body
    assert answer.headers["Content-Type"] == blobframes.MEDIA_TYPE
    return read_frames(answer.body)


def folder_of(api: Api, data: bytes) -> str:
    return os.path.join(api.settings.blobs_folder, Digest.of(data).hex[:2])


def damage(api: Api, digest: Digest, at: int) -> None:
    path = os.path.join(api.settings.blobs_folder, digest.hex[:2], digest.hex)
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("kind", BODIES)
async def test_one_blob_whole_in_part_and_not_again(api: Api, kind: str) -> None:
    data = BODIES[kind]
    digest, size = Digest.of(data), len(data)
    await push(api, "etl", data)

    async def get(**headers: str) -> Answer:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return await api.call("GET", f"/v1/blobs/sha512/{digest.hex}", token=api.admin, headers=sent)

    for _ in range(2):  # the second time it is in memory, if it is ever
        whole = await get()
        assert (whole.status, whole.body) == (200, data)
        assert whole.headers["ETag"] == f'"{digest}"'
        assert Digest.from_repr_digest(whole.headers["Repr-Digest"]) == digest
        assert "immutable" in whole.headers["Cache-Control"]
        for asked, first, last in (
            ("bytes=0-", 0, size - 1),
            ("bytes=0-0", 0, 0),
            (f"bytes=7-{size * 2}", 7, size - 1),
            (f"bytes={size - 1}-", size - 1, size - 1),
            ("bytes=-3", size - 3, size - 1),
            (f"bytes=-{size * 2}", 0, size - 1),
        ):
            part = await get(Range=asked)
            assert (part.status, part.body) == (206, data[first : last + 1]), asked
            assert part.headers["Content-Range"] == f"bytes {first}-{last}/{size}"
        for asked in (f"bytes={size}-", f"bytes={size}-{size + 5}", "bytes=-0"):
            assert (await get(Range=asked)).slug == "range-not-satisfiable", asked
    for tag in (f'"{digest}"', f'"x", "{digest}"', "*"):
        answer = await get(If_None_Match=tag)
        assert (answer.status, answer.body, answer.headers["ETag"]) == (304, b"", f'"{digest}"')
    assert (await get(If_None_Match=f'"{Digest.of(b"")}"')).status == 200


async def test_many_come_in_the_order_that_they_were_asked_for(api: Api) -> None:
    worker = await api.worker()
    bodies = [SOURCE + b"#%d\n" % i for i in range(40)] + [LARGE]
    for i, body in enumerate(bodies):
        await push(api, f"a{i}", body)
    bodies.reverse()
    absent = Digest.of(b"absent")
    for token in (api.admin, worker.token):
        found = frames(
            await batch(api, token, *(Digest.of(body) for body in bodies[:20]), absent, Digest.of(bodies[20]))
        )
        assert found == [
            *((Digest.of(body), body) for body in bodies[:20]),
            (absent, "not-found"),
            (Digest.of(bodies[20]), bodies[20]),
        ]


async def test_what_the_caller_may_not_read_is_as_what_is_not_there_and_is_recorded(api: Api) -> None:
    alice, bob = await api.token("alice"), await api.token("bob")
    mine, hers, absent = SOURCE, SOURCE + b"#hers\n", Digest.of(b"absent")
    await api.push("bobs.py", mine, token=bob)
    await api.push("hers.py", hers, token=alice)
    before = (await api.events())[-1]["seq"]
    asked = [Digest.of(hers), absent, Digest.of(mine)]
    found = frames(await batch(api, bob, *asked))
    assert found == [(asked[0], "not-found"), (absent, "not-found"), (asked[2], mine)]
    (event,) = [event for event in await api.events() if event["seq"] > before]
    assert (event["principal"], event["action"], event["verdict"]) == ("bob", "blob.read", "refused")
    assert event["object"] == f"blob:{asked[0].hex}"
    for digest, said in found:  # exactly as one by one
        single = await api.call("GET", f"/v1/blobs/sha512/{digest.hex}", token=bob)
        assert single.body == said if single.status == 200 else single.slug == said
    assert (await api.call("POST", "/v1/blobs/batch", json={"digests": [str(absent)]})).status == 401


@pytest.mark.parametrize(
    "digests",
    [
        [],
        [str(Digest.of(b"x"))] * 2,
        [Digest.of(b"x").hex],
        ["sha512:" + "A" * 128],
        [str(Digest.of(str(i).encode())) for i in range(blobframes.MAX_DIGESTS + 1)],
    ],
    ids=["none", "twice", "bare", "upper case", "too many"],
)
async def test_what_is_no_list_of_digests_is_refused(api: Api, digests: list[str]) -> None:
    assert (await batch(api, api.admin, *digests)).status == 422


@pytest.mark.parametrize(("kind", "at"), [("small", 0), ("larger", 200_000), ("larger", -1)])
async def test_a_damaged_one_is_left_out_and_the_others_come(api: Api, kind: str, at: int) -> None:
    others, bad = [SOURCE + b"#1\n", SOURCE + b"#2\n"], BODIES[kind]
    for i, body in enumerate((others[0], bad, others[1])):
        await push(api, f"a{i}", body)
    damage(api, Digest.of(bad), at % len(bad))
    found = frames(await batch(api, api.admin, Digest.of(others[0]), Digest.of(bad), Digest.of(others[1])))
    assert [said for _, said in found] == [others[0], "digest-mismatch", others[1]]


async def test_one_whose_end_is_damaged_never_ends_well(api: Api) -> None:
    body = LARGE
    await push(api, "etl", body)
    damage(api, Digest.of(body), len(body) - 5)
    headers = {"Authorization": f"Bearer {api.admin}"}
    url = f"{api.url}/v1/blobs/batch"
    async with api.session.post(url, json={"digests": [str(Digest.of(body))]}, headers=headers) as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_a_retired_release_s_bytes_are_gone_from_memory_too(folder: str) -> None:
    async with Api(folder, retention={"keep_releases": 1, "keep_days": 1}) as api:
        old, new = SOURCE, SOURCE + b"#new\n"
        await api.push("etl.py", old)
        assert frames(await batch(api, api.admin, Digest.of(old)))[0][1] == old
        await api.push("etl.py", new)
        api.clock.forward(30 * 86400)
        await retiring.retire(api.service)
        os.makedirs(folder_of(api, old), exist_ok=True)
        with open(os.path.join(folder_of(api, old), Digest.of(old).hex), "wb") as file:
            file.write(old)  # as when the service was killed before it removed them
        assert frames(await batch(api, api.admin, Digest.of(old), Digest.of(new))) == [
            (Digest.of(old), "not-found"),
            (Digest.of(new), new),
        ]
        store: Any = api.service.blobs
        assert store._cache.get(Digest.of(old)) is None


def test_memory_is_bounded_in_bytes_and_keeps_what_was_used_last() -> None:
    recent = Recent(100)
    blobs = [bytes([i]) * 40 for i in range(3)]
    for blob in blobs[:2]:
        recent.put(Digest.of(blob), blob)
    recent.get(Digest.of(blobs[0]))
    recent.put(Digest.of(blobs[2]), blobs[2])
    assert [recent.get(Digest.of(blob)) for blob in blobs] == [blobs[0], None, blobs[2]]
    recent.put(Digest.of(b"x" * 101), b"x" * 101)
    assert recent.get(Digest.of(b"x" * 101)) is None
    recent.put(Digest.of(blobs[1]), blobs[1])
    recent.put(Digest.of(blobs[1]), blobs[1])
    recent.put(Digest.of(blobs[2]), blobs[2])
    assert [recent.get(Digest.of(blob)) for blob in blobs] == [None, blobs[1], blobs[2]]
