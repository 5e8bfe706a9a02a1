"""T29 forged-release: whoever has taken over the server has its signing key and its log, and records code of his own.

The malicious API is in this process: manifest, ticket, leaf and checkpoint are all signed as they should be, and the agent and
its cache are the real ones. What it has not is an author's key. Each forgery is refused with its own error before a byte is
asked for, and reported; and nothing of it is fetched ahead, or handed out to a local process that asks.

Seen to fail when weakened: `launching.carry_out` without `authors.require`, or with it after `_run`; `Keeper.keep` without
`permit`; `ReleaseSocket._answer` without `require`; `authorship.verify` without any one of its checks.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from integrity import canonical
from integrity.digests import Digest
from integrity.errors import NotFoundError
from integrity.fields import to_base64
from tests.integration.worker_cache.agent_host import Host
from tests.integration.worker_cache.agent_peers import ARCHIVE, NAME, ApiSim, LauncherSim
from tests.logsim import released
from tests.sshsig import sshsig
from vocabulary import authorship, envelopes
from vocabulary.keys import SigningKey
from vocabulary.leaves import Activated, Keyed, Owned
from vocabulary.logview import LogView
from worker_cache import askreleases, releasesocket
from worker_cache.authors import Authors
from worker_cache.batch import BLOB_BYTES
from worker_cache.readers import Reader
from worker_cache.releasesocket import ReleaseSocket
from worker_cache.setfolders import SetFolders
from worker_cache.store import Store

ANN, MALLORY = SigningKey(bytes([1]) * 32), SigningKey(bytes([66]) * 32)
AUTHORS = Authors(rules=((NAME, (ANN.public,)), ("open-*", (ANN.public, MALLORY.public))))
EVIL = b"import os  # what the author never wrote\n" * 10
DIGEST = Digest.of(EVIL)
GENUINE = authorship.sign(ANN, archive=NAME, digest=Digest.of(ARCHIVE))
ELSE = f"the author signed something else than {NAME} with {DIGEST}"
NOT_OURS = f"author key {MALLORY.public.key_id[:16]}… is not one of the 1 trusted here"
NOT_SIGNED = f"the signature is not one of key {ANN.public.key_id[:16]}… over these bytes"


def of(key: SigningKey, *, archive: str = NAME, digest: Digest = DIGEST) -> bytes:
    return authorship.sign(key, archive=archive, digest=digest)


def under_anns_name(envelope: bytes) -> bytes:
    return canonical.dump({"envelope": to_base64(envelope), "key": to_base64(ANN.public.raw), "v": 1})


def bent(signature: bytes, old: bytes, new: bytes) -> bytes:
    assert signature.count(old) == 1 and len(old) == len(new)
    return signature.replace(old, new)


def with_another_statement() -> bytes:
    """The author's envelope, and in it the statement that the attacker needs."""
    made = canonical.load(
        envelopes.sign(authorship.statement(NAME, DIGEST), payload_type=authorship.PAYLOAD_TYPE, key=ANN),
        max_bytes=4096,
    )
    true = canonical.load(
        envelopes.sign(authorship.statement(NAME, Digest.of(ARCHIVE)), payload_type=authorship.PAYLOAD_TYPE, key=ANN),
        max_bytes=4096,
    )
    return under_anns_name(canonical.dump(true | {"payload": made["payload"]}))


def claimed() -> bytes:
    """Mallory's signature under the id of Ann's key."""
    envelope = envelopes.sign(authorship.statement(NAME, DIGEST), payload_type=authorship.PAYLOAD_TYPE, key=MALLORY)
    return under_anns_name(bent(envelope, MALLORY.public.key_id.encode(), ANN.public.key_id.encode()))


FORGERIES: dict[str, tuple[bytes | None, str]] = {
    "unsigned": (None, "is not signed by an author, and this host asks for one: see dagseal push"),
    "of another archive": (of(ANN, archive="other.py"), ELSE),
    "of other bytes": (of(ANN, digest=Digest.of(b"harmless")), ELSE),
    "by a key of nobody": (of(MALLORY), NOT_OURS),
    "by a key that is trusted with other archives": (of(MALLORY, archive="open-1.py"), NOT_OURS),
    "by another key in the author's name": (claimed(), NOT_SIGNED),
    "bent": (with_another_statement(), NOT_SIGNED),
    "no signature at all": (b"\x00", "not canonical JSON"),
    "of the same statement for another purpose": (
        under_anns_name(
            envelopes.sign(authorship.statement(NAME, DIGEST), payload_type="application/vnd.dagseal.x+json", key=ANN)
        ),
        "envelope: holds 'application/vnd.dagseal.x+json'",
    ),
    "SSH: by a key of nobody": (sshsig(MALLORY, archive=NAME, digest=DIGEST), NOT_OURS),
    "SSH: of another archive": (sshsig(ANN, archive="other.py", digest=DIGEST), NOT_SIGNED),
    "SSH: of other bytes": (sshsig(ANN, archive=NAME, digest=Digest.of(b"harmless")), NOT_SIGNED),
    "SSH: of another namespace": (
        sshsig(ANN, archive=NAME, digest=DIGEST, namespace=b"git"),
        "its namespace is b'git', it is to be b'dagseal.dev/author'",
    ),
    "SSH: of another hash": (
        sshsig(ANN, archive=NAME, digest=DIGEST, hash_name=b"sha256"), "its hash algorithm is b'sha256'",
    ),
    "SSH: bent": (
        sshsig(ANN, archive=NAME, digest=DIGEST, cut_signature=1), "an Ed25519 signature is 64 bytes, not 63",
    ),
}  # fmt: skip


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    def now() -> int:
        return int(time.time())

    async with ApiSim(now) as api, LauncherSim(str(tmp_path / "l.sock"), api.ring, now) as launcher:
        found = Host(tmp_path, api, launcher)
        found.authors = AUTHORS
        api.blobs[DIGEST.hex] = EVIL
        yield found


def cached(host: Host) -> set[str]:
    """The names of all blobs, whole or not."""
    return {
        path.name for path in (host.folder / "cache").rglob("*") if path.is_file() and path.parent.name != "log"
    } - {"lock"}


async def launched(host: Host, number: int, data: bytes, author: bytes | None) -> str:
    """What the API hears of a launch of this release."""
    host.api.leaf = {"author": author}
    launch_id = f"{number:032x}"
    host.api.queue.put_nowait(host.api.offer(host.launcher, launch_id, data=data, number=number))
    await asyncio.wait_for(host.api.ended[launch_id].wait(), 10)
    return host.api.states[launch_id]


def refusals(host: Host) -> list[tuple[str, str]]:
    return [
        (str(call.kwargs["slug"]), str(call.kwargs["detail"]))
        for call in host.log.calls
        if call.args == ("launch refused",)
    ]


@pytest.mark.parametrize("case", FORGERIES)
async def test_a_forged_release_is_refused_before_a_byte_of_it_is_asked_for(host: Host, case: str) -> None:
    signature, said = FORGERIES[case]
    async with host.agent():
        before = cached(host)
        assert await launched(host, 1, EVIL, signature) == "refused"
        assert host.api.calls["entries"] == 1, "the log was asked first"
        assert cached(host) == before
    (reported,) = host.api.refusals.values()
    assert reported[0] == "author" and reported[1].startswith(f"{NAME}@1 is not signed by an author")
    assert said in reported[1]
    assert refusals(host) == [reported], "and is in the agent's own log"
    assert "blob" not in host.api.calls and host.launcher.seen_archives == []


async def test_a_signature_of_an_older_release_with_other_bytes(host: Host) -> None:
    """It was genuine, and still is where it belongs."""
    async with host.agent():
        assert await launched(host, 1, ARCHIVE, GENUINE) == "success"
        before = cached(host)
        assert await launched(host, 2, EVIL, GENUINE) == "refused"
        assert cached(host) == before
        (reported,) = host.api.refusals.values()
        assert reported == ("author", f"{NAME}@2 is not signed by an author who is trusted here: {ELSE}")
        assert await launched(host, 3, ARCHIVE, GENUINE) == "success", (
            "the same bytes once more: the author signed these"
        )
    assert host.api.calls["blob"] == 1 and host.launcher.seen_archives == [ARCHIVE, ARCHIVE]


@pytest.mark.parametrize("form", [authorship.sign, sshsig])
async def test_what_the_author_signed_is_launched(host: Host, form: Callable[..., bytes]) -> None:
    async with host.agent():
        assert await launched(host, 1, ARCHIVE, form(ANN, archive=NAME, digest=Digest.of(ARCHIVE))) == "success"
    assert host.launcher.seen_archives == [ARCHIVE]


async def test_an_archive_that_the_file_does_not_name_needs_no_author(host: Host) -> None:
    host.authors = Authors(rules=(("other-*", (ANN.public,)),))
    async with host.agent():
        assert await launched(host, 1, ARCHIVE, None) == "success"
    host.authors = Authors(rules=(("other-*", (ANN.public,)), ("*", (ANN.public,))))
    async with host.agent():
        assert await launched(host, 2, EVIL, None) == "refused"


async def test_a_forged_release_is_not_fetched_ahead(host: Host) -> None:
    """It is the active one, and beside it is another that may be fetched: that one alone is."""
    log = host.api.log.log
    evil, fine = (line * (BLOB_BYTES // len(line) + 1) for line in (EVIL, b"x = 1\n"))  # each asked for by itself
    host.api.blobs |= {Digest.of(data).hex: data for data in (evil, fine)}
    forged = released(NAME, 1, data=evil, author=of(MALLORY, digest=Digest.of(evil)))
    allowed = released("open-1.py", 1, data=fine, author=of(MALLORY, archive="open-1.py", digest=Digest.of(fine)))
    log.add(forged, Activated(at=1, by="ann", archive=NAME, number=1))
    log.add(allowed, Activated(at=1, by="ann", archive="open-1.py", number=1))
    async with host.agent() as place:
        place.cache.start()
        await place.follower.sync()
        view = place.follower.known.view
        assert view.wanted(frozenset({"default"})).keys() == {forged.digest, allowed.digest}
        place.keeper.changed(view)
        async with asyncio.timeout(10):
            while not place.cache.held([allowed.digest]):
                await asyncio.sleep(0.001)
        said = place.keeper.said(place.follower)
        assert said.missing == [forged.digest], "the server is told what this host has not"
    assert host.api.calls["blob"] == 1
    assert forged.digest.hex not in cached(host) and allowed.digest.hex in cached(host)


async def test_a_forged_release_is_not_handed_out(tmp_path: Path) -> None:
    """Airflow's dag processor would import it. Its bytes are there already, as those of an archive that needs no author."""
    store = Store.open(str(tmp_path / "cache"))
    receiver = store.receive()
    receiver.write(EVIL)
    receiver.finish(DIGEST)
    receiver.close()
    forged = released(NAME, 1, data=EVIL)
    said = [
        Keyed(at=1, key=MALLORY.public, signature=None),
        *(Owned(at=1, by="ann", archive=name, owner="ann", group="ann", mode=0o700) for name in (NAME, "free.py")),
        forged,
        replace(forged, archive="free.py"),
        *(Activated(at=2, by="ann", archive=name, number=1) for name in (NAME, "free.py")),
    ]
    view = LogView().extended(said)

    async def held(release: object) -> int:
        return store.open_verified(DIGEST)

    path = str(tmp_path / "r.sock")
    told: list[bytes] = []

    async def put(body: bytes) -> str:
        told.append(body)
        return Digest.of(body).hex

    async def get(_: str) -> bytes:
        raise NotFoundError("no such set")

    socket = ReleaseSocket(
        path,
        readers={os.geteuid(): Reader(principal="ann")},
        folders=SetFolders(put=put, get=get, view=lambda: view, fetch=held, trees=None, authors=AUTHORS),
        open_cached=held,
        log=structlog.get_logger("agent"),
    )
    try:
        for want in releasesocket.WANTS:
            with pytest.raises(NotFoundError, match=rf"author: {NAME}@1 is not signed by an author"):
                await asyncio.to_thread(askreleases.ask, path, NAME, 1, want=want)
        _, fd = await asyncio.to_thread(askreleases.ask, path, "free.py", 1)
        assert fd is not None and os.pread(fd, 1 << 20, 0) == EVIL
        os.close(fd)
        await asyncio.to_thread(askreleases.ask_set, path, ["*"], want="version")
        assert b"free.py" in told[0] and NAME.encode() not in told[0]
    finally:
        await socket.close()
        store.close()
