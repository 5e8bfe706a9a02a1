"""T28 local-readers: a local process asks the agent for code that is another team's, or tries what else can be done with the
socket, the descriptor or the folder that it gets.

Seen to fail when weakened: `may_read` that always agrees; folders and files that all may write; a folder of folders that can
be listed; `runnable` left out.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import pwd
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import structlog

from integrity import messages
from integrity.digests import Digest
from integrity.errors import DagsealError, NotFoundError, StaleError
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
CODE = {"etl.zip": zipwriter.pack({"dag.py": b"x = 1\n"}), "ml.zip": zipwriter.pack({"dag.py": b"y = 2\n"})}
OLD = zipwriter.pack({"dag.py": b"x = 0\n"})
ETL, ML, STRANGER = "nobody", "daemon", "bin"


def leaves() -> list[Leaf]:
    found: list[Leaf] = [Keyed(at=1, key=SigningKey.generate().public, signature=None)]
    for name, data in CODE.items():
        team = name.partition(".")[0]
        found.append(Owned(at=1, by=team, archive=name, owner=team, group=team, mode=0o770))
        for number, content in enumerate((OLD, data, b"never fetched " + data), 1):
            digest = Digest.of(content)
            found.append(
                Released(
                    at=1, by=team, archive=name, number=number, digest=digest, size=len(content), manifest=digest,
                    owner=team, group=team, waits=number == 4,
                )
            )  # fmt: skip
        found.append(Revoked(at=2, by=team, archive=name, number=1, digest=Digest.of(OLD)))
        found.append(Activated(at=3, by=team, archive=name, number=2))
    return found


class Agent:
    """The agent's side, real but for its network: there is none to fetch from."""

    def __init__(self, folder: str) -> None:
        self.view: LogView | DagsealError = LogView().extended(leaves())
        self.store = Store.open(os.path.join(folder, "cache"))
        for data in (*CODE.values(), OLD):
            receiver = self.store.receive()
            receiver.write(data)
            receiver.finish(Digest.of(data))
            receiver.close()
        self.trees = Trees(os.path.join(folder, "trees"), max_bytes=1024 * 1024)
        self.path = os.path.join(folder, "releases.sock")
        self.socket = ReleaseSocket(
            self.path,
            readers={
                pwd.getpwnam(ETL).pw_uid: Reader(principal="etl"),
                pwd.getpwnam(ML).pw_uid: Reader(principal="ml"),
            },
            folders=SetFolders(
                put=self._put,
                get=self._get,
                view=self._view,
                fetch=self._open,
                trees=self.trees,
                authors=ANYBODY,
            ),
            open_cached=self._open,
            log=structlog.get_logger("agent"),
        )

    def _view(self) -> LogView:
        if isinstance(self.view, DagsealError):
            raise self.view
        return self.view

    async def _open(self, release: LoggedRelease) -> int:
        return self.store.open_verified(release.digest)

    async def _put(self, body: bytes) -> str:
        raise AssertionError("here nobody asks for a set")

    async def _get(self, name: str) -> bytes:
        raise AssertionError("here nobody asks for a set")

    async def close(self) -> None:
        await self.socket.close()
        self.store.close()

    async def tried(self, account: str, body: Callable[[], object]) -> str:
        """What becomes of it in a process of that account."""

        def become() -> object:
            found = pwd.getpwnam(account)
            os.setgroups([])
            os.setresgid(found.pw_gid, found.pw_gid, found.pw_gid)
            os.setresuid(found.pw_uid, found.pw_uid, found.pw_uid)
            return body()

        return await asyncio.to_thread(in_fork, become)

    async def asked(self, account: str, archive: str, number: int | None = None, want: str = "file") -> str:
        """The bytes as text, or the folder, or the refusal."""

        def body() -> str:
            message, fd = askreleases.ask(self.path, archive, number, want=want)
            return os.pread(fd, 1 << 20, 0).hex() if fd is not None else message.fields.text("folder")

        return await self.tried(account, body)


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    with tempfile.TemporaryDirectory(prefix="dagseal-t28-") as folder:
        Path(folder).chmod(0o711)
        found = Agent(folder)
        yield found
        await found.close()


async def test_each_team_gets_its_own_code_and_no_other(agent: Agent) -> None:
    assert await agent.asked(ETL, "etl.zip") == CODE["etl.zip"].hex()
    assert await agent.asked(ML, "ml.zip") == CODE["ml.zip"].hex()
    for account, archive in ((ETL, "ml.zip"), (ML, "etl.zip"), (STRANGER, "etl.zip"), (STRANGER, "ml.zip")):
        for want in releasesocket.WANTS:
            said = await agent.asked(account, archive, want=want)
            assert said.startswith("NotFoundError: not-owner: "), said
    assert len(os.listdir(agent.trees.path)) == 0


async def test_revoked_unknown_and_uncached_releases_are_refused_and_nothing_is_fetched(agent: Agent) -> None:
    before = sorted(os.listdir(f"/proc/self/fd/{agent.store._root}/sha512"))
    assert (await agent.asked(ETL, "etl.zip", 1)).startswith("NotFoundError: revoked: ")
    assert (await agent.asked(ETL, "etl.zip", 3)).startswith("NotFoundError: not-found: ")
    assert (await agent.asked(ETL, "etl.zip", 9)).startswith("NotFoundError: not-found: ")
    assert (await agent.asked(ETL, "other.zip")).startswith("NotFoundError: not-found: ")
    assert sorted(os.listdir(f"/proc/self/fd/{agent.store._root}/sha512")) == before


async def test_a_stale_log_gives_nothing(agent: Agent) -> None:
    agent.view = StaleError("the newest checkpoint is old")
    assert (await agent.asked(ETL, "etl.zip")).startswith("NotFoundError: stale: ")


async def test_the_descriptor_cannot_write_the_cache(agent: Agent) -> None:
    def body() -> str:
        _, fd = askreleases.ask(agent.path, "etl.zip")
        assert fd is not None
        tried = [
            refusal(lambda: os.write(fd, b"x")),
            refusal(lambda: os.ftruncate(fd, 0)),
            refusal(lambda: os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR))),
            refusal(lambda: os.fchmod(fd, 0o666)),
            refusal(lambda: os.listdir(os.path.dirname(os.readlink(f"/proc/self/fd/{fd}")))),
        ]
        return " ".join(tried)

    assert await agent.tried(ETL, body) == "EBADF EINVAL EACCES EPERM EACCES"
    assert await agent.asked(ETL, "etl.zip") == CODE["etl.zip"].hex()


async def test_a_held_lock_on_the_descriptor_keeps_nobody_from_the_release(agent: Agent) -> None:
    locked, done = os.pipe(), os.pipe()

    def body() -> str:
        _, fd = askreleases.ask(agent.path, "etl.zip")
        assert fd is not None
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(locked[1], b"x")
        os.read(done[0], 1)
        return "held"

    holding = asyncio.create_task(agent.tried(ETL, body))
    await asyncio.to_thread(os.read, locked[0], 1)
    assert await agent.asked(ETL, "etl.zip", want="folder") != ""
    assert await agent.asked(ETL, "etl.zip") == CODE["etl.zip"].hex()
    os.write(done[1], b"x")
    assert await holding == "held"
    for fd in (*locked, *done):
        os.close(fd)


async def test_a_folder_is_read_by_who_was_told_and_written_by_nobody(agent: Agent) -> None:
    folder = await agent.asked(ETL, "etl.zip", want="folder")

    def body() -> str:
        assert Path(folder, "dag.py").read_bytes() == b"x = 1\n"
        dag = os.path.join(folder, "dag.py")
        tried = [
            refusal(lambda: os.close(os.open(dag, os.O_WRONLY))),
            refusal(lambda: os.unlink(dag)),
            refusal(lambda: os.close(os.open(os.path.join(folder, "sitecustomize.py"), os.O_WRONLY | os.O_CREAT))),
            refusal(lambda: os.chmod(dag, 0o666)),
            refusal(lambda: os.rename(folder, folder + "x")),
            refusal(lambda: os.listdir(agent.trees.path)),
            refusal(lambda: os.mkdir(os.path.join(agent.trees.path, "mine"))),
        ]
        return " ".join(tried)

    assert await agent.tried(ETL, body) == "EACCES EACCES EACCES EPERM EACCES EACCES EACCES"
    assert (await agent.tried(ML, lambda: refusal(lambda: os.listdir(agent.trees.path)))) == "EACCES"


@pytest.mark.parametrize(
    "frame",
    [
        messages.encode("release", archive="etl.zip", number=0, want="file"),
        messages.encode("release", archive="../etl.zip", number=None, want="file"),
        messages.encode("release", archive="etl.zip", number=None, want="shell"),
        messages.encode("release", archive="etl.zip", number=None, want="file", uid=0),
        messages.encode("run", ticket="", manifest=""),
        b"\xff\xff\xff\xff",
        b"\0\0\0\2{}",
        b"GET ",
    ],
)
async def test_what_is_no_question_is_refused_as_malformed(agent: Agent, frame: bytes) -> None:
    def body() -> str:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(agent.path)
            sock.sendall(frame)
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(10)
            data = b""
            while chunk := sock.recv(4096):
                data += chunk
        return messages.decode(data[messages.HEADER_BYTES :]).fields.text("error")

    assert await agent.tried(ETL, body) == "malformed"


async def test_a_word_of_who_one_is_counts_for_nothing_and_brought_descriptors_are_closed(agent: Agent) -> None:
    def body() -> str:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, open(os.devnull) as extra:
            sock.connect(agent.path)
            frame = messages.encode("release", archive="etl.zip", number=None, want="file")
            credentials = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, b"\1\0\0\0" + bytes(8))
            denied = refusal(lambda: sock.sendmsg([frame], [credentials]))
            socket.send_fds(sock, [frame], [extra.fileno()])
            data = sock.recv(4096)
        return f"{denied} {messages.decode(data[messages.HEADER_BYTES :]).fields.text('error')}"

    before = len(os.listdir("/proc/self/fd"))
    assert await agent.tried(ML, body) == "EPERM not-owner"
    assert len(os.listdir("/proc/self/fd")) == before


async def test_silent_askers_do_not_keep_others_out_for_long(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releasesocket, "ANSWER_SECONDS", 0.2)
    held = []
    for _ in range(releasesocket.MAX_CONNECTIONS + 8):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        await asyncio.to_thread(sock.connect, agent.path)
        sock.setblocking(False)
        held.append(sock)
    for sock in held:
        assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""
        sock.close()
    assert await agent.asked(ETL, "etl.zip") == CODE["etl.zip"].hex()
    with pytest.raises(NotFoundError, match="not-owner"):
        await asyncio.to_thread(askreleases.ask, agent.path, "etl.zip")  # root is an account like others
