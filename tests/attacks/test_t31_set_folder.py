"""T31 set-folder: the folder that Airflow's dag processor reads is changed under it, or a local account gets in it what it may
not read, or stays on what was revoked.

Seen to fail when weakened: `Trees.find` that looks through nothing, or past other hands; `active` without `may_read`;
`recalled` without `runnable` or without the name's check; `watch` without its limits; `Draft.add` that hashes nothing.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import structlog

from integrity import messages
from integrity.digests import Digest
from integrity.errors import FetchError, NotFoundError
from tests.forked import in_fork, refusal
from vocabulary import zipwriter
from vocabulary.keys import SigningKey
from vocabulary.leaves import Activated, Keyed, Leaf, Owned, Released, Revoked
from vocabulary.logview import LoggedRelease, LogView
from worker_cache import askreleases, releasesocket
from worker_cache.authors import ANYBODY
from worker_cache.readers import Reader
from worker_cache.releasesocket import ReleaseSocket
from worker_cache.setfolders import SetFolders
from worker_cache.store import Store
from worker_cache.trees import Trees

pytestmark = pytest.mark.root
ETL = {1: b"x = 1\n", 2: b"x = 2\n"}
ML = zipwriter.pack({"dag.py": b"y = 1\n"})
PUBLIC = b"z = 1\n"
AIRFLOW, READER, STRANGER = "nobody", "daemon", "bin"


def released(archive: str, number: int, data: bytes) -> Released:
    digest = Digest.of(data)
    return Released(
        at=1, by="x", archive=archive, number=number, digest=digest, size=len(data), manifest=digest, owner="x",
        group="x", waits=False,
    )  # fmt: skip


def owned(archive: str, team: str, mode: int) -> Owned:
    return Owned(at=1, by="x", archive=archive, owner=team, group=team, mode=mode)


LEAVES: list[Leaf] = [
    Keyed(at=1, key=SigningKey.generate().public, signature=None),
    owned("etl.py", "etl", 0o740),
    owned("ml.zip", "ml", 0o700),
    owned("public.py", "etl", 0o744),
    *(released("etl.py", number, data) for number, data in ETL.items()),
    released("ml.zip", 1, ML),
    released("public.py", 1, PUBLIC),
    *(Activated(at=2, by="x", archive=archive, number=1) for archive in ("etl.py", "ml.zip", "public.py")),
]
SECOND = Activated(at=3, by="x", archive="etl.py", number=2)


class Agent:
    """The agent's side, real but for its network: `api` is what the server was told."""

    def __init__(self, folder: str) -> None:
        self.view = LogView().extended(LEAVES)
        self.api: dict[str, bytes] = {}
        self.api_away = False
        self.instead: bytes | None = None  # what is opened, whatever is asked for
        self.store = Store.open(os.path.join(folder, "cache"))
        for data in (*ETL.values(), ML, PUBLIC):
            receiver = self.store.receive()
            receiver.write(data)
            receiver.finish(Digest.of(data))
            receiver.close()
        self.trees = Trees(os.path.join(folder, "trees"), max_bytes=1024 * 1024)
        self.path = os.path.join(folder, "releases.sock")
        self.fetched: list[str] = []
        self.folders = SetFolders(
            put=self._put, get=self._get, view=lambda: self.view, fetch=self._fetch, trees=self.trees, authors=ANYBODY
        )
        both = frozenset({"etl", "ml"})
        self.socket = ReleaseSocket(
            self.path,
            readers={
                pwd.getpwnam(AIRFLOW).pw_uid: Reader(principal="airflow", groups=both),
                pwd.getpwnam(READER).pw_uid: Reader(principal="reader", groups=frozenset({"etl"})),
            },
            folders=self.folders,
            open_cached=self._fetch,
            log=structlog.get_logger("agent"),
        )

    async def _put(self, body: bytes) -> str:
        if self.api_away:
            raise FetchError("the API is away")
        name = Digest.of(body).hex
        assert name not in self.api, "told twice"
        self.api[name] = body
        return name

    async def _get(self, name: str) -> bytes:
        if name not in self.api:
            raise NotFoundError("no such set")
        return self.api[name]

    async def _fetch(self, release: LoggedRelease) -> int:
        self.fetched.append(release.archive)
        return self.store.open_verified(Digest.of(self.instead) if self.instead is not None else release.digest)

    def says(self, *leaves: Leaf) -> None:
        self.view = self.view.extended(leaves)
        self.folders.changed()

    async def close(self) -> None:
        await self.socket.close()
        self.store.close()

    async def tried(self, account: str, body: Callable[[], object]) -> str:
        def become() -> object:
            found = pwd.getpwnam(account)
            os.setgroups([])
            os.setresgid(found.pw_gid, found.pw_gid, found.pw_gid)
            os.setresuid(found.pw_uid, found.pw_uid, found.pw_uid)
            return body()

        return await asyncio.to_thread(in_fork, become)

    async def asked(self, account: str, globs: list[str], digest: str | None = None, want: str = "folder") -> str:
        """Digest and folder, or the refusal."""

        def body() -> str:
            named = Digest(digest) if digest is not None else None
            found, folder = askreleases.ask_set(self.path, globs, named, want=want)
            return f"{found.hex} {folder}"

        return await self.tried(account, body)

    async def folder(self, account: str = AIRFLOW, digest: str | None = None) -> Path:
        return Path((await self.asked(account, ["*"], digest)).split()[1])


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    with tempfile.TemporaryDirectory(prefix="dagseal-t31-") as folder:
        Path(folder).chmod(0o711)
        found = Agent(folder)
        yield found
        await found.close()


def there(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def test_a_set_has_what_its_reader_may_read_and_nothing_else(agent: Agent) -> None:
    # 0700 keeps ml.zip from its own group; etl.py is its group's to read; public.py everybody's.
    folder = await agent.folder(AIRFLOW)
    assert there(folder) == {"etl.py": ETL[1], "public.py": PUBLIC}
    assert await agent.folder(READER) == folder
    assert there(await agent.folder(STRANGER)) == {"public.py": PUBLIC}
    assert (await agent.asked(STRANGER, ["ml.*", "etl.*"])).startswith("NotFoundError: not-found: ")
    assert "ml.zip" not in agent.fetched
    digest = next(name for name, body in agent.api.items() if b"etl.py" in body)
    for want in releasesocket.SET_WANTS:
        said = await agent.asked(STRANGER, ["*"], digest, want)
        assert said.startswith("NotFoundError: not-owner: "), said


async def test_a_folder_is_written_by_nobody_and_found_by_who_was_told(agent: Agent) -> None:
    folder = await agent.folder()

    def body() -> str:
        dag = str(folder / "etl.py")
        tried = [
            refusal(lambda: os.close(os.open(dag, os.O_WRONLY))),
            refusal(lambda: os.unlink(dag)),
            refusal(lambda: os.close(os.open(str(folder / "sitecustomize.py"), os.O_WRONLY | os.O_CREAT))),
            refusal(lambda: os.chmod(dag, 0o666)),
            refusal(lambda: os.listdir(agent.trees.path)),
        ]
        return " ".join(tried)

    assert await agent.tried(AIRFLOW, body) == "EACCES EACCES EACCES EPERM EACCES"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o555
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o444}


@pytest.mark.parametrize("how", ["changed", "added", "removed", "linked", "endless"])
async def test_a_tampered_folder_is_seen_and_made_anew(agent: Agent, how: str) -> None:
    before = await agent.folder()
    assert await agent.folder() == before
    before.chmod(0o755)
    dag = before / "etl.py"
    if how == "added":
        (before / "sitecustomize.py").write_bytes(b"import os\n")
    else:
        dag.unlink()
        if how == "changed":
            dag.write_bytes(b"x = 9\n")
        elif how == "linked":
            dag.symlink_to("/dev/zero")
        elif how == "endless":
            os.mkfifo(dag)
    after = await agent.folder()
    assert after != before
    assert not before.exists()
    assert there(after) == {"etl.py": ETL[1], "public.py": PUBLIC}


async def test_what_is_damaged_in_the_cache_makes_no_folder(agent: Agent) -> None:
    digest = Digest.of(ETL[1]).hex
    entry = Path(f"/proc/self/fd/{agent.store._root}/sha512/{digest[:2]}/{digest}")
    entry.chmod(0o600)
    entry.write_bytes(b"x = 9\n")
    assert (await agent.asked(AIRFLOW, ["*"])).startswith("NotFoundError: digest-mismatch: ")
    assert os.listdir(agent.trees.path) == []


async def test_genuine_bytes_of_another_release_make_no_folder(agent: Agent) -> None:
    agent.instead = ETL[2]
    assert (await agent.asked(AIRFLOW, ["*"])).startswith("NotFoundError: digest-mismatch: ")
    assert os.listdir(agent.trees.path) == []


async def test_an_archive_that_changes_hands_takes_the_folder_with_it(agent: Agent) -> None:
    before = await agent.folder(READER)
    digest = (await agent.asked(READER, ["*"], want="version")).split()[0]
    agent.says(owned("etl.py", "ml", 0o740))
    assert there(await agent.folder(READER)) == {"public.py": PUBLIC}
    assert (await agent.asked(READER, ["*"], digest)).startswith("NotFoundError: not-owner: ")
    assert await agent.folder(AIRFLOW, digest) != before
    assert not before.exists()


async def test_a_revoked_release_is_in_no_set_old_or_new(agent: Agent) -> None:
    old = (await agent.asked(AIRFLOW, ["*"])).split()[0]
    agent.says(SECOND)
    assert there(await agent.folder()) == {"etl.py": ETL[2], "public.py": PUBLIC}
    assert there(await agent.folder(AIRFLOW, old)) == {"etl.py": ETL[1], "public.py": PUBLIC}
    agent.says(Revoked(at=4, by="x", archive="etl.py", number=1, digest=Digest.of(ETL[1])))
    assert (await agent.asked(AIRFLOW, ["*"], old)).startswith("NotFoundError: revoked: ")


async def test_a_set_that_somebody_put_under_another_name_or_made_up_is_refused(agent: Agent) -> None:
    one = b'{"archive":"etl.py","digest":"sha512:%s","number":2}'
    good, lie = (
        b'{"releases":[%s],"v":1}' % (one % Digest.of(data).hex.encode()) for data in (ETL[2], b"something evil")
    )
    twice = good.replace(b"}]", b"}," + one % Digest.of(ETL[2]).hex.encode() + b"]")
    agent.api["0" * 128] = good
    for made in (lie, twice, b'{"releases":[],"v":1}', b"nonsense"):
        agent.api[Digest.of(made).hex] = made
    assert (await agent.asked(AIRFLOW, ["*"], "0" * 128)).startswith("NotFoundError: digest-mismatch: ")
    assert (await agent.asked(AIRFLOW, ["*"], Digest.of(lie).hex)).startswith("NotFoundError: digest-mismatch: ")
    for made in (twice, b'{"releases":[],"v":1}', b"nonsense"):
        assert (await agent.asked(AIRFLOW, ["*"], Digest.of(made).hex)).startswith("NotFoundError: malformed: ")
    assert os.listdir(agent.trees.path) == []


async def test_a_version_that_the_api_does_not_know_is_not_given_out(agent: Agent) -> None:
    agent.api_away = True
    assert (await agent.asked(AIRFLOW, ["*"], want="version")).startswith("NotFoundError: fetch: ")
    agent.api_away = False
    digest = (await agent.asked(AIRFLOW, ["*"], want="version")).split()[0]
    assert list(agent.api) == [digest]
    assert (await agent.asked(AIRFLOW, ["*"], want="version")).split()[0] == digest  # and told once


async def test_who_watches_is_told_at_once_and_of_each_change(agent: Agent) -> None:
    watching = askreleases.watch_sets(agent.path, ["public.py", "etl.*"])
    first = await asyncio.to_thread(next, watching)  # as root, who reads public.py only
    agent.says(SECOND)  # not root's to read: nothing is told
    agent.says(released("public.py", 2, ETL[1]), Activated(at=3, by="x", archive="public.py", number=2))
    second = await asyncio.to_thread(next, watching)
    assert second != first
    assert b"etl.py" not in agent.api[second.hex]
    await agent.socket.close()
    assert await asyncio.to_thread(next, watching, None) is None


async def test_watchers_keep_nobody_out_and_end_with_their_askers(agent: Agent) -> None:
    held = []
    for _ in range(releasesocket.MAX_WATCHERS_OF_ONE):
        held.append(askreleases.watch_sets(agent.path, ["*"]))
        await asyncio.to_thread(next, held[-1])
    with pytest.raises(NotFoundError, match="fetch: too many watch"):
        await asyncio.to_thread(next, askreleases.watch_sets(agent.path, ["*"]))
    assert (await agent.asked(AIRFLOW, ["*"])).split()[0] in agent.api
    for watching in held:
        watching.close()  # type: ignore[attr-defined]
    async with asyncio.timeout(10):
        while agent.socket._watching.total():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    "frame",
    [
        messages.encode("set", archives=[], digest=None, want="folder"),
        messages.encode("set", archives="*", digest=None, want="folder"),
        messages.encode("set", archives=["../*"], digest=None, want="folder"),
        messages.encode("set", archives=["*"], digest="sha512:00", want="folder"),
        messages.encode("set", archives=["*"], digest=None, want="file"),
        messages.encode("set", archives=["*"] * 101, digest=None, want="folder"),
        messages.encode("watch", archives=[7]),
        messages.encode("watch", archives=["*"], uid=0),
        messages.encode("set", fds=1, archives=["*"], digest=None, want="folder"),
    ],
)
async def test_what_is_no_question_is_refused_as_malformed(agent: Agent, frame: bytes) -> None:
    def asked() -> str:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(agent.path)
            sock.sendall(frame)
            sock.settimeout(10)
            data = sock.recv(4096)
        return messages.decode(data[messages.HEADER_BYTES :]).fields.text("error")

    assert await asyncio.to_thread(asked) == "malformed"
