"""The server's whole log, and what the server says beside it: read, not judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from integrity.errors import FetchError
from vocabulary import tiles
from vocabulary.checkpoints import Checkpoint
from vocabulary.notes import Note

if TYPE_CHECKING:
    from worker_cache.client import Client

_TRIES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """`archives` and `releases` are those that the caller may read; `manifests` by archive and number."""

    checkpoint: bytes
    entries: list[bytes] = field(repr=False)
    archives: list[Any] = field(repr=False)
    releases: list[Any] = field(repr=False)
    manifests: dict[tuple[str, int], bytes] = field(repr=False)


async def everything(client: Client) -> Told:
    """Log and answers of one moment: what changes in between is read again. Raises `FetchError` where it changes always."""
    from dagseal.cli import pages

    entries: list[bytes] = []
    manifests: dict[tuple[str, int], bytes] = {}
    note = await client.log_checkpoint()
    for _ in range(_TRIES):
        size = _size(note)
        while len(entries) < size:
            entries += await _entries(client, len(entries), size)
        archives = await pages.archives(client)
        releases = [one for found in archives for one in await pages.releases(client, found["name"])]
        for one in releases:
            key = (one["archive"], one["number"])
            if key not in manifests:
                manifests[key] = await client.manifest(*key)
        note = await client.log_checkpoint()
        if _size(note) == size:
            return Told(checkpoint=note, entries=entries, archives=archives, releases=releases, manifests=manifests)
    raise FetchError("the log grows faster than it is read: try again when less is submitted")


async def _entries(client: Client, start: int, end: int) -> list[bytes]:
    found = tiles.entries_of(await client.log_entries(start, end))
    if not found or start + len(found) > end:
        raise FetchError(f"the server was asked for leaves {start} to {end} of its log, and sent {len(found)}")
    return found


def _size(note: bytes) -> int:
    """Of a checkpoint that nobody believes yet."""
    return Checkpoint.from_text(Note.from_bytes(note).text).size
