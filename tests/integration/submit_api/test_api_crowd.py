"""Many at once: 200 clients of every kind, and large bodies side by side. Everybody is answered; memory and descriptors are as
before.

The service is a process of its own, `python -m submit_api`, whose /proc is read. Nothing describes: an upload that is good
enough to be described is told so (503), which is as far as its bytes go.

Seen to fail when weakened: `Upload.read` that reads into memory of its own; `_members` by `archives.read`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from api_rig import SOURCE

from integrity.digests import Digest
from vocabulary import zipwriter

MIB = 1 << 20
CLIENTS = 200


class Server:
    """A running service with its administrator's token."""

    def __init__(self, folder: str, process: subprocess.Popen[bytes], port: int, token: str) -> None:
        self.folder, self.process, self.port, self.token = folder, process, port, token

    def kib(self, field: str) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])

    def reset_peak(self) -> None:
        """VmHWM counts from here."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def stored(self) -> list[str]:
        return [str(path) for path in Path(f"{self.folder}/state/blobs").rglob("*/*")]

    def temporary(self) -> list[str]:
        return [name for name in os.listdir(f"{self.folder}/state/blobs") if name.startswith(".tmp-")]

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.close()

    def head(self, name: str, *lines: str, token: str = "") -> bytes:
        given = f"PUT /v1/archives/{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        return "\r\n".join([f"{given}Authorization: Bearer {token or self.token}", *lines, "", ""]).encode()


@contextmanager
def serving(folder: str, limits: str) -> Iterator[Server]:
    config, port_file = f"{folder}/api.toml", f"{folder}/log"
    with open(config, "w") as file:
        file.write(f'[api]\nport = 0\nstate_folder = "{folder}/state"\nlauncher_socket = "{folder}/none.sock"\n')
        file.write(f"[limits]\nlingering_seconds = 0\n{limits}\n")
    command = [sys.executable, "-m", "submit_api", "--config", config]
    token = subprocess.run([*command, "--bootstrap"], capture_output=True, check=True, text=True).stdout.strip()
    with open(port_file, "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield Server(folder, process, port_of(process, port_file), token)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def port_of(process: subprocess.Popen[bytes], log: str) -> int:
    """Which port it listens on, from /proc: its one listening socket."""
    while process.poll() is None:
        inodes = set()
        for number in os.listdir(f"/proc/{process.pid}/fd"):
            try:
                inodes.add(os.readlink(f"/proc/{process.pid}/fd/{number}").removeprefix("socket:[").removesuffix("]"))
            except FileNotFoundError:
                continue
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                return int(fields[1].rpartition(":")[2], 16)
    raise AssertionError(Path(log).read_text())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="dagseal-") as folder:
        limits = f"max_uploads_per_principal = {CLIENTS}\nbody_window_seconds = 1\nbody_min_bytes_per_second = 100\n"
        with serving(folder, limits) as running:
            yield running


async def status_of(reader: asyncio.StreamReader) -> int:
    """What was answered; 0 when nothing was."""
    try:
        answer = await asyncio.wait_for(reader.read(), 60)
    except ConnectionError:
        return 0
    return int(answer.split(b" ", 2)[1]) if answer else 0


async def send(server: Server, number: int, kind: str) -> tuple[str, int]:
    """One client of a kind; what it was answered."""
    token, length = server.token, f"Content-Length: {len(SOURCE)}"
    async with server.connection() as (reader, writer):
        match kind:
            case "good":
                writer.write(server.head(f"a{number}.py", length, token=token) + SOURCE)
            case "lying digest":
                lie = f"Repr-Digest: {Digest.of(b'').repr_digest}"
                writer.write(server.head(f"a{number}.py", length, lie, token=token) + SOURCE)
            case "gzip":
                writer.write(server.head(f"a{number}.py", length, "Content-Encoding: gzip", token=token) + SOURCE)
            case "too long":
                writer.write(server.head(f"a{number}.py", f"Content-Length: {1 << 40}", token=token))
            case "short":
                writer.write(server.head(f"a{number}.py", length, token=token) + SOURCE[:10])
                writer.write_eof()
            case "aborted":
                writer.write(server.head(f"a{number}.py", length, token=token) + SOURCE[:10])
                await writer.drain()
                writer.transport.abort()
                return kind, 0
            case "slow":
                writer.write(server.head(f"a{number}.py", length, token=token) + SOURCE[:1])
            case "bad zip":
                writer.write(server.head(f"a{number}.zip", "Content-Length: 2", token=token) + b"PK")
        await writer.drain()
        return kind, await status_of(reader)


ANSWERS = {
    "good": 503,
    "lying digest": 422,
    "gzip": 415,
    "too long": 413,
    "short": 0,
    "aborted": 0,
    "slow": 408,
    "bad zip": 415,
}


async def test_200_clients_at_once(server: Server) -> None:
    """All are answered as each deserves, three times over, and the third costs what the first did."""
    kinds, sizes, fds = list(ANSWERS), [], []
    for _ in range(3):
        answers = Counter(await asyncio.gather(*(send(server, n, kinds[n % len(kinds)]) for n in range(CLIENTS))))
        assert answers == {(kind, status): CLIENTS // len(kinds) for kind, status in ANSWERS.items()}
        async with asyncio.timeout(30):
            while server.temporary():
                await asyncio.sleep(0.01)
        sizes.append(server.kib("VmRSS"))
        fds.append(await settled(server))
    print(f"{CLIENTS} clients, three times: {sizes} KiB, {fds} descriptors")
    assert fds[2] <= fds[0] and sizes[2] - sizes[0] < 16 * 1024
    assert server.stored() == []


async def settled(server: Server) -> int:
    """How many descriptors it has when it has closed what was left by others; at most the least that was seen of late."""
    async with asyncio.timeout(30):
        while (before := server.descriptors()) > 40:
            await asyncio.sleep(0.01)
    return before


async def stream(server: Server, name: str, size: int, piece: bytes) -> int:
    async with server.connection() as (reader, writer):
        writer.write(server.head(name, f"Content-Length: {size}"))
        try:
            for _ in range(size // len(piece)):
                writer.write(piece)
                await writer.drain()
        except ConnectionError:
            return 0
        return await status_of(reader)


async def large_bodies(server: Server, count: int, size: int) -> int:
    """How much memory, in KiB, is taken more than before while `count` bodies of `size` bytes come in side by side.

    They are noise, which is found out when they are read. What an upload takes does not depend on its size."""
    piece = os.urandom(MIB)
    assert await stream(server, "warm.zip", size, piece) == 415
    server.reset_peak()
    before = server.kib("VmRSS")
    answers = await asyncio.gather(*(stream(server, f"a{n}.zip", size, piece) for n in range(count)))
    assert answers == [415] * count and not server.temporary()
    grown = server.kib("VmHWM") - before
    print(f"{count} x {size // MIB} MiB: {before} KiB before, at most {grown} KiB more")
    return grown


async def test_large_bodies_come_in_side_by_side(server: Server) -> None:
    assert await large_bodies(server, 8, 16 * MIB) < (8 * 2 + 24) * 1024


@pytest.mark.soak
async def test_twenty_bodies_of_100_mib(folder: str) -> None:
    with serving(folder, f"max_archive_bytes = {100 * MIB}\n") as server:
        assert await large_bodies(server, 20, 100 * MIB) < (20 * 2 + 24) * 1024


async def test_archives_that_inflate_side_by_side(server: Server) -> None:
    """Each of 16 inflates from 18 KiB to 16 MiB, within the limits: two at a time do, one file after the other."""
    packed = zipwriter.pack({"etl.py": SOURCE, **{f"{n}.txt": bytes(MIB) for n in range(16)}})
    assert await stream(server, "warm.zip", len(packed), packed) == 503
    server.reset_peak()
    before = server.kib("VmRSS")
    answers = await asyncio.gather(*(stream(server, f"a{n}.zip", len(packed), packed) for n in range(16)))
    grown = server.kib("VmHWM") - before
    print(f"16 archives of 16 MiB in {len(packed)} bytes: at most {grown} KiB more")
    assert answers == [503] * 16 and grown < 24 * 1024
