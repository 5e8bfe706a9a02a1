"""A ticket is used once, whatever restarts, full disks and clocks lie between. The journal is what remembers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from integrity import canonical
from integrity.digests import Digest
from integrity.errors import ExpiredError, ReplayError
from notary.journal import Journal, before, names, verify
from vocabulary.tickets import CLOCK_SKEW_SECONDS, MAX_LIFETIME_SECONDS, Ticket, VerifiedTicket

TICKET = Ticket(
    ticket_id="1" * 32,
    launch_id="2" * 32,
    audience="a" * 64,
    queue="default",
    archive="etl.py",
    release=1,
    digest=Digest.of(b"archive"),
    manifest_digest=Digest.of(b"manifest"),
    dag_id="etl",
    task_id="load",
    run_id="run",
    map_index=-1,
    try_number=1,
    task_digest=None,
    unix_user="etl",
    rule="3" * 32,
    owner="ann",
    principal="ann",
    issued_at=1_000,
    expires_at=1_060,
    timeout_seconds=60,
)


NOW = 1_010


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


class Clock:
    """Seconds since 1970, as the host has them at the time."""

    now = NOW

    def __call__(self) -> int:
        return self.now * 1_000_000


@pytest.fixture
def clock() -> Clock:
    return Clock()


def verified(ticket: Ticket = TICKET, **changes: object) -> VerifiedTicket:
    changed = replace(ticket, **changes)
    return VerifiedTicket(ticket=changed, digest=Digest.of(changed.to_bytes()))


def numbered(number: int, **changes: object) -> VerifiedTicket:
    return verified(ticket_id=f"{number:032x}", **changes)


def launches(folder: int, tmp_path: Path) -> list[str]:
    """The ids in the journal, of all its files."""
    found = []
    for name in names(folder):
        lines = (tmp_path / name).read_bytes().split(b"\n")[:-1]
        found += [entry["ticket_id"] for entry, _ in verify(lines, before(name)) if entry["event"] == "launch"]
    return found


def test_the_second_use_is_refused(folder: int, tmp_path: Path, clock: Clock) -> None:
    journal = Journal(folder, now_us=clock)
    journal.use(verified(), user="etl")
    with pytest.raises(ReplayError, match="used before"):
        journal.use(verified(), user="etl")
    assert launches(folder, tmp_path) == [TICKET.ticket_id]
    journal.use(numbered(3))


def test_the_id_is_on_disk_when_it_returns(
    folder: int, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(folder, now_us=clock)
    synced, fdatasync = [], os.fdatasync

    def seen(fd: int) -> None:
        synced.append(launches(folder, tmp_path))
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", seen)
    journal.use(verified())
    assert synced == [[TICKET.ticket_id]]


def test_the_second_use_is_refused_after_a_restart(folder: int, tmp_path: Path, clock: Clock) -> None:
    Journal(folder, now_us=clock).use(verified())
    with pytest.raises(ReplayError):
        Journal(folder, now_us=clock).use(verified())
    assert launches(folder, tmp_path) == [TICKET.ticket_id]


def test_the_same_id_with_another_content_is_the_same_ticket(folder: int, clock: Clock) -> None:
    journal = Journal(folder, now_us=clock)
    journal.use(verified())
    with pytest.raises(ReplayError):
        journal.use(verified(expires_at=9_999, launch_id="4" * 32))


def test_two_jobs_with_one_ticket_at_once(folder: int, tmp_path: Path, clock: Clock) -> None:
    """Between the look and the line there is nothing that another job could come in at."""
    journal = Journal(folder, now_us=clock)

    async def job() -> str:
        await asyncio.sleep(0)
        try:
            journal.use(verified())
        except ReplayError:
            return "refused"
        return "used"

    async def both() -> list[str]:
        return await asyncio.gather(*(job() for _ in range(8)))

    assert sorted(asyncio.run(both())) == ["refused"] * 7 + ["used"]
    assert launches(folder, tmp_path) == [TICKET.ticket_id]


def test_only_ids_that_are_refused_by_age_are_forgotten(folder: int, clock: Clock) -> None:
    journal = Journal(folder, now_us=clock)
    journal.use(verified())
    journal.use(numbered(3, expires_at=TICKET.expires_at + 1))
    clock.now = TICKET.expires_at - 1
    journal.forget_expired()
    assert set(journal._used) == {TICKET.ticket_id, f"{3:032x}"}
    clock.now = TICKET.expires_at
    journal.forget_expired()
    assert set(journal._used) == {f"{3:032x}"}
    with pytest.raises(ReplayError):
        journal.use(numbered(3, expires_at=TICKET.expires_at + 1))


def test_under_load_only_ids_that_can_be_used_again_are_kept(folder: int, clock: Clock) -> None:
    journal = Journal(folder, now_us=clock)
    for number in range(200):
        clock.now = NOW + number
        journal.use(numbered(number, expires_at=clock.now + 10))
        assert len(journal._used) == min(number + 1, 10)
    with pytest.raises(ReplayError):
        journal.use(numbered(199, expires_at=clock.now + 10))
    clock.now -= 5
    with pytest.raises(ExpiredError, match="clock was set back"):
        journal.use(numbered(186, expires_at=NOW + 196 - 10))
    with pytest.raises(ReplayError):
        journal.use(numbered(195, expires_at=NOW + 195 + 10))


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("continued", [False, True])
def test_a_clock_that_is_set_back_revives_no_ticket(
    folder: int, tmp_path: Path, clock: Clock, restarted: bool, continued: bool
) -> None:
    journal = Journal(folder, now_us=clock, max_bytes=1)
    journal.use(verified())
    clock.now = TICKET.expires_at + 86_400
    journal.forget_expired()
    assert not journal._used
    if continued:
        journal.write("event")
    if restarted:
        journal = Journal(folder, now_us=clock)
    clock.now = NOW
    with pytest.raises(ExpiredError, match="clock was set back"):
        journal.use(verified())
    assert launches(folder, tmp_path) == [TICKET.ticket_id]
    journal.use(numbered(3, expires_at=TICKET.expires_at + 1))


@pytest.mark.parametrize("restarted", [False, True])
def test_what_was_used_is_known_in_the_next_file(folder: int, tmp_path: Path, clock: Clock, restarted: bool) -> None:
    journal = Journal(folder, now_us=clock, max_bytes=1)
    tickets = [verified(), *(numbered(number) for number in range(10))]
    for ticket in tickets:
        journal.use(ticket)
    assert len(names(folder)) == len(tickets)
    for name in names(folder)[:-1]:
        (tmp_path / name).unlink()
    if restarted:
        journal = Journal(folder, now_us=clock, max_bytes=1)
    for ticket in tickets:
        with pytest.raises(ReplayError):
            journal.use(ticket)


def test_more_ids_than_one_line_holds_are_carried_over(
    folder: int, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("notary.journal._CARRIED_IDS", 3)
    journal = Journal(folder, now_us=clock, max_bytes=100_000)
    for number in range(10):
        journal.use(numbered(number, expires_at=TICKET.expires_at - (number == 0)))
    clock.now = TICKET.expires_at - 1
    journal._full_at = 1
    journal.write("event")
    name = names(folder)[-1]
    entries = [entry for entry, _ in verify((tmp_path / name).read_bytes().split(b"\n")[:-1], before(name))]
    assert [entry["event"] for entry in entries] == ["continued", *["carried"] * 3, "event"]
    assert entries[0]["dropped_until"] == TICKET.expires_at - 1
    carried = [ticket_id for entry in entries[1:4] for ticket_id in entry["tickets"]]
    assert sorted(carried) == [f"{number:032x}" for number in range(1, 10)]
    assert {expires for entry in entries[1:4] for expires in entry["tickets"].values()} == {TICKET.expires_at}


@pytest.mark.parametrize("call", ["write", "fdatasync"])
def test_when_it_cannot_be_written_it_is_not_used(
    folder: int, tmp_path: Path, clock: Clock, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(folder, now_us=clock)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space"):
        journal.use(verified())
    monkeypatch.undo()
    assert launches(folder, tmp_path) == []
    journal.use(verified())
    with pytest.raises(ReplayError):
        journal.use(verified())
    assert launches(folder, tmp_path) == [TICKET.ticket_id]


def test_a_line_that_was_cut_short_by_a_crash_is_no_use(folder: int, tmp_path: Path, clock: Clock) -> None:
    """Its task was not given its job: the line is on disk before."""
    journal = Journal(folder, now_us=clock)
    journal.use(verified())
    path = tmp_path / names(folder)[0]
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        journal = Journal(folder, now_us=clock)
        journal.use(verified())
        with pytest.raises(ReplayError):
            journal.use(verified())
        journal.close()
    assert launches(folder, tmp_path) == [TICKET.ticket_id]


def old_line(at: int, ticket: VerifiedTicket) -> bytes:
    """As it was while the ids were kept in a folder of their own."""
    told = {"launch_id": ticket.ticket.launch_id, "ticket": str(ticket.digest), "digest": str(ticket.ticket.digest)}
    more = {"user": "etl", "profile": "standard", "event": "launch", "seq": 1, "at": at * 1_000_000, "prev": "0" * 128}
    return canonical.dump({**told, **more}) + b"\n"


@pytest.mark.parametrize("continued", [False, True])
def test_a_ticket_that_an_older_version_used(folder: int, tmp_path: Path, clock: Clock, continued: bool) -> None:
    ticket = verified(issued_at=NOW + CLOCK_SKEW_SECONDS, expires_at=NOW + CLOCK_SKEW_SECONDS + MAX_LIFETIME_SECONDS)
    (tmp_path / "journal.jsonl").write_bytes(old_line(NOW, ticket))
    clock.now = ticket.ticket.expires_at - 1  # as late as it could be tried
    journal = Journal(folder, now_us=clock, max_bytes=1 if continued else 100_000)
    if continued:
        journal.write("start")
        journal = Journal(folder, now_us=clock)
    with pytest.raises(ReplayError):
        journal.use(ticket)
    journal.use(numbered(3, expires_at=ticket.ticket.expires_at))
