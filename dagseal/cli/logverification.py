"""The rules of `dagseal verify --server-log`: numbered checks over the whole log and what the server says beside it.

| check | threat it answers                                                                       |
|-------|-----------------------------------------------------------------------------------------|
| 1     | a log that contradicts itself: other bytes under a number, a key that nobody handed on  |
| 2     | another log than the trusted one                                                        |
| 3     | a log that was invented, or that is shown no further than it suits somebody             |
| 4     | leaves that were left out, added or changed: the root is recomputed from all of them    |
| 5     | a server that answers otherwise than its log: active, revoked, waiting, owner, mode     |
| 6     | manifests that a server invents                                                         |

With 4 each release is in the log, since every leaf was seen. Not checked: that the log goes on from what somebody else saw
(its followers do), and releases that the caller may not read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from dagseal.cli import report
from dagseal.cli.logreading import Told
from dagseal.cli.report import Check, Difference, FailedError, Report, ok, unmade
from dagseal.cli.verification import MAX_AGE_SECONDS
from integrity.errors import DagsealError
from vocabulary import checkpoints, leaves, manifest, merkle, proofs
from vocabulary.keys import KeyRing, VerifyKey
from vocabulary.leaves import Released
from vocabulary.logview import LoggedArchive, LoggedRelease, LogView

CHECKS = {
    1: "whether the log contradicts itself",
    2: "whether the log is one that is trusted",
    3: "whether the log's checkpoint is genuine",
    4: "whether these are all its leaves",
    5: "whether the server says what its log says",
    6: "whether the manifests are those that the log names",
}
_MODE_LETTERS = "rwxrwxrwx"


def judge(told: Told, trusted: Collection[VerifyKey], *, server: str, now: int) -> Report:
    """The checks in order, up to the first that fails. `now` in seconds."""
    return report.made("log", server, CHECKS, _steps(told, trusted, now))


def _steps(told: Told, trusted: Collection[VerifyKey], now: int) -> Iterator[Check]:
    number = 1
    try:
        parsed = [leaves.from_bytes(entry) for entry in told.entries]
        view = LogView().extended(parsed)
        yield ok(1, f"{view.size} leaves, none of which contradicts those before it")
        number = 2
        believed = proofs.handed_on(view.keys, trusted)
        yield ok(2, f"of the log's keys ({len(view.keys)}) trusted from {believed[0].key_id[:16]}… on")
        number = 3
        signed = checkpoints.verify(told.checkpoint, believed, origin=view.origin)
        checkpoints.require_fresh(signed.checkpoint, now=now, max_age_seconds=MAX_AGE_SECONDS)
        yield ok(3, f"the checkpoint is signed by key {signed.key_id[:16]}… and {now - signed.checkpoint.time} s old")
    except DagsealError as error:
        raise FailedError(number, str(error)) from None
    root = merkle.root_of([merkle.leaf_hash(entry) for entry in told.entries])
    if (view.size, root) != (signed.checkpoint.size, signed.checkpoint.root):
        raise FailedError(4, f"the root of these {view.size} leaves is not the checkpoint's")
    yield ok(4, f"the root of these {view.size} leaves is the checkpoint's")
    wrong = sorted(_disagreements(told, view), key=lambda one: one.name)
    if wrong:
        raise FailedError(
            5, f"the server answers otherwise than its log about {wrong[0].name}: {wrong[0].change}", wrong
        )
    yield ok(5, f"{len(told.archives)} archives and {len(told.releases)} releases are what the log says")
    yield from _manifests(told, view, {leaf.manifest: leaf for leaf in parsed if isinstance(leaf, Released)})


def _disagreements(told: Told, view: LogView) -> Iterator[Difference]:
    shown = {(one["archive"], one["number"]) for one in told.releases}
    for found in told.archives:
        logged = view.archives.get(found["name"], LoggedArchive())
        said = (found["active"], found["owner"], found["group"], found["mode"], found["latest"])
        mode = None if logged.mode is None else shown_mode(logged.mode)
        expected = (logged.active, logged.owner, logged.group, mode, len(logged.releases))
        for what, one, other in zip(("active", "owner", "group", "mode", "latest"), said, expected, strict=True):
            if one != other:
                yield Difference(change=f"{what} is {one}, logged {other}", name=found["name"])
        for number in logged.releases:
            if (found["name"], number) not in shown:
                yield Difference(change="not shown", name=f"{found['name']}@{number}")
    for one in told.releases:
        release = view.archives.get(one["archive"], LoggedArchive()).releases.get(one["number"])
        if release is None:
            yield Difference(change="not in the log", name=f"{one['archive']}@{one['number']}")
            continue
        active = view.archives[one["archive"]].active
        pairs = {
            "digest": (one["digest"], str(release.digest)),
            "size": (one["size"], release.size),
            "manifest": (one["manifest_digest"], str(release.manifest)),
            "state": (one["state"], _state(release, active)),
            "approvals": (one["approved_by"], list(release.approved_by)),
        }
        for what, (said_one, logged_one) in pairs.items():
            if said_one != logged_one:
                yield Difference(change=f"{what} is {said_one}, logged {logged_one}", name=release.name)


def _manifests(told: Told, view: LogView, named: dict[Any, Released]) -> Iterator[Check]:
    ring = KeyRing(list(view.keys))
    for (archive, number), envelope in sorted(told.manifests.items()):
        try:
            verified = manifest.verify(envelope, ring)
            view.release(archive, number).manifest.require(verified.digest, f"the manifest of {archive}@{number}")
            proofs.require_same(verified, named[verified.digest])
        except DagsealError as error:
            raise FailedError(6, f"{archive}@{number}: {error}") from None
    yield ok(6, f"{len(told.manifests)} manifests are signed by the log's keys, and are those that it names")
    unseen = sum(len(found.releases) for found in view.archives.values()) - len(told.manifests)
    if unseen:
        yield unmade(6, f"{unseen} releases of archives that you may not read", matters=False)


def _state(release: LoggedRelease, active: int | None) -> str:
    if release.revoked:
        return "revoked"
    if release.retired:
        return "retired"
    if release.waits:
        return "pending"
    return "active" if active == release.number else "inactive"


def shown_mode(mode: int) -> str:
    """As the server shows it.

    >>> shown_mode(0o750)
    'rwxr-x---'
    """
    return "".join(letter if mode >> (8 - at) & 1 else "-" for at, letter in enumerate(_MODE_LETTERS))
