"""A ticket id is used once, whatever restarts lie between."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from integrity import durable
from integrity.digests import Digest
from integrity.errors import ReplayError
from integrity.tickets import CLOCK_SKEW_SECONDS, Ticket
from launcher.replay import UsedTickets

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
    owner="ann",
    principal="ann",
    issued_at=1_000,
    expires_at=1_060,
    timeout_seconds=60,
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_the_second_use_is_refused(folder: int) -> None:
    used = UsedTickets(folder)
    used.use(TICKET)
    with pytest.raises(ReplayError, match="used before"):
        used.use(TICKET)
    used.use(replace(TICKET, ticket_id="3" * 32))


def test_the_second_use_is_refused_after_a_restart(folder: int) -> None:
    UsedTickets(folder).use(TICKET)
    with pytest.raises(ReplayError):
        UsedTickets(folder).use(TICKET)


def test_the_same_id_with_another_content_is_the_same_ticket(folder: int) -> None:
    used = UsedTickets(folder)
    used.use(TICKET)
    with pytest.raises(ReplayError):
        used.use(replace(TICKET, expires_at=9_999, launch_id="4" * 32))


def test_only_ids_that_are_refused_by_age_are_forgotten(folder: int) -> None:
    used = UsedTickets(folder)
    later = replace(TICKET, ticket_id="3" * 32, expires_at=TICKET.expires_at + 1)
    used.use(TICKET)
    used.use(later)
    limit = TICKET.expires_at + 2 * CLOCK_SKEW_SECONDS
    assert used.forget_expired(now=limit) == 0
    assert used.forget_expired(now=limit + 1) == 1
    assert os.listdir(folder) == [later.ticket_id]
    with pytest.raises(ReplayError):
        used.use(later)


def test_what_a_crash_left_is_swept_at_start_and_is_no_use(folder: int) -> None:
    fd, temporary = durable.open_temporary(folder)
    os.close(fd)
    assert os.listdir(folder) == [temporary]
    used = UsedTickets(folder)
    assert os.listdir(folder) == []
    used.use(TICKET)


def test_an_unfinished_file_does_not_stop_the_forgetting(folder: int) -> None:
    used = UsedTickets(folder)
    used.use(TICKET)
    fd, temporary = durable.open_temporary(folder)
    os.close(fd)
    assert used.forget_expired(now=10_000) == 1
    assert os.listdir(folder) == [temporary]


def test_an_id_that_is_a_path_is_refused(folder: int) -> None:
    from integrity.errors import MalformedError

    for name in ("../x", "a/b", "", ".", "A" * 32, "1" * 33):
        with pytest.raises(MalformedError):
            UsedTickets(folder).use(replace(TICKET, ticket_id=name))
    assert os.listdir(folder) == []


def test_when_it_cannot_be_written_it_is_not_used(folder: int, monkeypatch: pytest.MonkeyPatch) -> None:
    used = UsedTickets(folder)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        used.use(TICKET)
    monkeypatch.undo()
    assert os.listdir(folder) == []
    used.use(TICKET)
