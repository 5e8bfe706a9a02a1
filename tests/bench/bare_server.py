"""What an upload costs at least: an aiohttp handler that hashes the body, writes it, syncs it and gives it its name, and no
more; and the same with a second SHA-512 in a thread, since a manifest has a digest of each member. For
`python -m tests.bench.submitting`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable

from aiohttp import web

from vocabulary import durable


async def put(request: web.Request) -> web.Response:
    await _name(request, *await _receive(request))
    return web.Response(status=201)


async def put_and_hash_members(request: web.Request) -> web.Response:
    held = bytearray()
    received = await _receive(request, held.extend)
    members = asyncio.create_task(asyncio.to_thread(hashlib.sha512, held))
    await _name(request, *received)
    await members
    return web.Response(status=201)


async def _receive(request: web.Request, *told: Callable[[bytes], object]) -> tuple[int, str, str]:
    """The body's descriptor, temporary name and SHA-512; `told` are given each piece, too."""
    fd, temporary = durable.open_temporary(request.app[FOLDER])
    hashed = hashlib.sha512()
    async for chunk in request.content.iter_any():
        hashed.update(chunk)
        durable.write_all(fd, [chunk])
        for tell in told:
            tell(chunk)
    return fd, temporary, hashed.hexdigest()


async def _name(request: web.Request, fd: int, temporary: str, name: str) -> None:
    folder = request.app[FOLDER]
    await asyncio.to_thread(durable.publish_temporary, folder, temporary, fd, folder, name)
    os.close(fd)


FOLDER = web.AppKey("folder", int)


async def main(folder: str) -> None:
    app = web.Application()
    app[FOLDER] = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    app.router.add_put("/{name}", put)
    app.router.add_put("/members/{name}", put_and_hash_members)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(json.dumps({"port": runner.addresses[0][1], "token": "none"}), flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
