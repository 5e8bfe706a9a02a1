"""Where a rollback leads, for whole histories: one letter for each thing that happened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from integrity.errors import ConflictError, NotFoundError
from submit_api import rollback
from submit_api.registry.records import Activation, Archive

WHY = "was revoked"


def archive(active: int | None, activation: int, latest: int) -> Archive:
    return Archive(
        name="etl.py",
        owner="a",
        group="g",
        mode=0o770,
        latest=latest,
        active=active,
        created_at=1,
        activation=activation,
    )


def target(now: Archive, known: list[Activation], unusable: dict[int, str], wanted: int | None) -> Activation:
    """By what is recorded: `back` goes from one `before` to the next."""

    async def back() -> AsyncIterator[Activation]:
        at = now.activation
        while at and (at := known[at - 1].before):
            yield known[at - 1]

    async def why(number: int) -> str | None:
        return unusable.get(number)

    return asyncio.run(rollback.target(now, back(), why, wanted))


def told(story: str) -> tuple[Archive, list[Activation], dict[int, str]]:
    """`push`, `=2` activates 2, `<` and `<1` roll back (to 1), `!2` revokes 2; each must be possible."""
    known: list[Activation] = []
    now, unusable = archive(None, 0, 0), {}

    def became(number: int, before: int) -> Archive:
        made = Activation(
            archive="etl.py", seq=len(known) + 1, number=number, was=now.active, before=before, at=1, principal="a"
        )
        known.append(made)
        return archive(number, made.seq, max(now.latest, number))

    for word in story.split():
        if word == "push":
            now = became(now.latest + 1, now.activation)
        elif word[0] == "=":
            now = became(int(word[1:]), now.activation)
        elif word[0] == "!":
            unusable[int(word[1:])] = WHY
            now = archive(None if now.active == int(word[1:]) else now.active, now.activation, now.latest)
        else:
            to = target(now, known, unusable, int(word[1:]) if word[1:] else None)
            now = became(to.number, to.before)
    return now, known, unusable


@pytest.mark.parametrize(
    ("story", "wanted", "leads_to"),
    [
        ("push push push", None, 2),
        ("push push push", 1, 1),
        ("push push push <", None, 1),  # twice is two steps back, not forth again
        ("push push push <1", None, "nothing that can be launched was active before"),
        ("push push push < push", None, 2),  # the release that was found bad is not what 4 replaced
        ("push push push < push <", None, 1),
        ("push push push =1", None, 3),  # the last that was active, not the number before
        ("push push push =1", 2, 2),
        ("push push push =1 <", None, 2),
        ("push push push =1 =3 =1", None, 3),
        ("push push push !2", None, 1),
        ("push push push !3", None, 2),  # none is active: what was before the revoked one
        ("push push push !3 <", None, 1),
        ("push push !1", None, "release 2 is active, and nothing that can be launched was active before"),
        ("push !1", None, "no release is active, and nothing"),
        ("push", None, "release 1 is active, and nothing"),
        ("push push push !2", 2, "etl.py@2 was revoked"),
        ("push push push <", 3, "release 2 is active, and etl.py@3 was not before it"),
        ("push push", 2, "release 2 is active, and etl.py@2 was not before it"),
        ("push push", 3, "has no release 3; the latest is 2"),
    ],
)
def test_where_it_leads(story: str, wanted: int | None, leads_to: int | str) -> None:
    now, known, unusable = told(story)
    if isinstance(leads_to, int):
        assert target(now, known, unusable, wanted).number == leads_to
        return
    with pytest.raises((ConflictError, NotFoundError), match=leads_to):
        target(now, known, unusable, wanted)
