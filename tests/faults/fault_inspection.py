"""Look at what a power loss left, with the services' own code: their fsck, their readers, their rules about replay."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from integrity.digests import Digest
from integrity.errors import DagsealError, NotFoundError, ReplayError
from notary import journal
from notary.journal import Journal
from submit_api import fsck as api_fsck
from submit_api import settings as api_settings
from submit_api.findings import DAMAGE
from submit_api.registry import archives, ledger
from submit_api.running import opened
from vocabulary.tickets import Ticket, VerifiedTicket
from worker_cache import fsck as cache_fsck
from worker_cache.spool import Spool
from worker_cache.store import Store, hash_fd


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What the API's state folder holds: `uploads` are (archive, number, digest), each with its bytes verified."""

    damage: tuple[str, ...]
    uploads: frozenset[tuple[str, int, str]]
    launches: dict[str, str]


def api_state(folder: Path) -> Stored:
    """Of the state folder of an API that is not running. What cannot be read at all is damage."""
    try:
        return asyncio.run(_api_state(folder))
    except (DagsealError, OSError) as error:
        return Stored(damage=(f"{type(error).__name__}: {error}",), uploads=frozenset(), launches={})


async def _api_state(folder: Path) -> Stored:
    settings = api_settings.load(None, api={"state_folder": str(folder)})
    findings = await api_fsck.fsck(settings)
    async with opened(settings, migrating=False) as service, service.database.read() as tx:
        uploads = set()
        for release in await archives.releases(tx):
            try:
                await service.blobs.verify(Digest.parse(release.digest))
            except DagsealError:
                continue  # fsck named it
            uploads.add((release.archive, release.number, release.digest))
        found = await ledger.listed(tx, dag_id=None, state=None, limit=1000, seen_by=None)
    return Stored(
        damage=tuple(f"{f.rule} {f.subject}: {f.detail}" for f in findings if f.level == DAMAGE),
        uploads=frozenset(uploads),
        launches={launch.id: launch.state for launch in found},
    )


def cache_damage(folder: Path) -> list[str]:
    """Of an agent's cache; none at all is an empty one."""
    if not folder.exists():
        return []
    return [
        f"{finding.kind} {finding.path}: {finding.detail}"
        for finding in cache_fsck.check(str(folder)).findings
        if finding.is_damage
    ]


def used_cache(folder: Path, *, host_was_down: bool) -> list[str]:
    """What is wrong when an agent uses every entry of what a power loss left, and after that. What the host lost is not."""
    if not folder.exists():
        return []
    wrong: list[str] = []
    store = Store.open(str(folder), booted_at=time.time() + 3600 if host_was_down else 0.0)
    try:
        for digest, _, _ in list(store.entries()):
            try:
                fd = store.open_verified(digest)
            except NotFoundError:
                continue
            except DagsealError as error:
                wrong.append(f"{error.slug} {digest}")
            else:
                if hash_fd(fd)[0] != digest:
                    wrong.append(f"handed out wrong: {digest}")
                os.close(fd)
    finally:
        store.close()
    return wrong + cache_damage(folder)


def spooled_result(folder: Path, launch_id: str) -> bytes | None:
    """The result that a restarted agent would still deliver."""
    spool = Spool(str(folder))
    try:
        return spool.result(launch_id) if launch_id in spool.pending() else None
    finally:
        spool.close()


def journal_events(folder: Path) -> list[dict[str, object]]:
    """The launcher's journal, as a restarted launcher takes it up. Raises `MalformedError` when it is broken."""
    with _opened(folder) as fd:
        Journal(fd, now_us=lambda: 0).close()
        lines = [line for name in journal.names(fd) for line in (folder / name).read_bytes().split(b"\n")[:-1]]
    return [entry for entry, _ in journal.verify(lines)]


def refuses_again(folder: Path, ticket_id: str) -> bool:
    """Whether a restarted launcher refuses this ticket as used."""
    with _opened(folder) as fd:
        restarted = Journal(fd, now_us=lambda: 0)
        try:
            restarted.use(used(ticket_id))
        except ReplayError:
            return True
        finally:
            restarted.close()
    return False


def used(ticket_id: str) -> VerifiedTicket:
    """Any ticket with this id."""
    nothing = Digest.of(b"")
    ticket = Ticket(
        ticket_id=ticket_id,
        launch_id="0" * 32,
        audience="x",
        queue="x",
        archive="x.py",
        release=1,
        digest=nothing,
        manifest_digest=nothing,
        dag_id="x",
        task_id="x",
        run_id="x",
        map_index=-1,
        try_number=1,
        task_digest=nothing,
        unix_user="x",
        rule="0" * 32,
        owner="x",
        principal="x",
        issued_at=1,
        expires_at=1,
        timeout_seconds=1,
    )
    return VerifiedTicket(ticket=ticket, digest=Digest.of(ticket_id.encode()))


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)
