"""Lists that the server answers by pages: all of one, for commands that show all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker_cache.client import Client

PAGE = 500


async def archives(client: Client) -> list[Any]:
    """Every archive that the caller may see, by name."""
    return await _all(client, "/v1/archives", "archives", "name", {})


async def releases(client: Client, name: str, *, digest: str | None = None) -> list[Any]:
    """Every release of an archive, by number; with `digest` those of these bytes."""
    from worker_cache.client import segment

    query = {"after": "0"} if digest is None else {"after": "0", "digest": digest}
    return await _all(client, f"/v1/archives/{segment(name)}/releases", "releases", "number", query)


async def _all(client: Client, path: str, rows: str, key: str, query: dict[str, str]) -> list[Any]:
    found: list[Any] = []
    while page := (await client.get(path, {**query, "limit": str(PAGE)}))[rows]:
        if found and page[-1][key] <= found[-1][key]:
            break  # a server that knows no pages has sent all at once, and sends it again
        found += page
        query = {**query, "after": str(page[-1][key])}
    return found
