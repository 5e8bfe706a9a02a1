"""What differs between two manifests: one thing changed at a time, and everything that may say so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from integrity.digests import Digest
from vocabulary import differences
from vocabulary.differences import ADDED, CHANGED, DIGEST, REMOVED, Differences
from vocabulary.manifest import DagEntry, Manifest, Member, TaskEntry

A, B = Digest.of(b"a"), Digest.of(b"b")
TASK = TaskEntry(
    task_id="t", digest=A, operator="X", run_as_user="etl", queue="default", connections=("db",), mapped=False
)
DAG = DagEntry(dag_id="d", member="d.py", tasks=(TASK,))
MEMBER = Member(name="d.py", size=1, digest=A)
BASE = Manifest(
    archive="d.zip", number=1, digest=A, size=9, members=(MEMBER,), owner="alice", group="team", submitted_by="alice",
    created_at=1, task_check="task", airflow_version="3.3.2", dags=(DAG,),
)  # fmt: skip


def with_tasks(*tasks: TaskEntry, **more: Any) -> Manifest:
    return replace(BASE, dags=(replace(DAG, tasks=tasks),), **more)


def told(found: Differences) -> dict[str, Any]:
    """What is not empty, with changes as (change, name, before, after)."""
    out: dict[str, Any] = {}
    for what in ("settings", "members", "dags", "tasks"):
        if changes := [(c.change, "/".join(c.name), dict(c.before), dict(c.after)) for c in getattr(found, what)]:
            out[what] = changes
    for what in ("connections", "unix_users"):
        sets = getattr(found, what)
        if sets.gained or sets.lost:
            out[what] = (sets.gained, sets.lost)
    return out


ONE = {"size": 1, "digest": str(A)}
TOLD = {"digest": str(A), "operator": "X", "run_as_user": "etl", "queue": "default", "connections": ["db"],
        "mapped": False}  # fmt: skip
CASES: dict[str, tuple[Manifest, dict[str, Any]]] = {
    "nothing": (BASE, {}),
    "what every release has of its own": (replace(BASE, number=2, created_at=9, submitted_by="bob", size=10, digest=B), {}),
    "a member more": (
        replace(BASE, members=(MEMBER, Member(name="x.py", size=2, digest=B))),
        {"members": [(ADDED, "x.py", {}, {"size": 2, "digest": str(B)})]},
    ),
    "a member less": (replace(BASE, members=()), {"members": [(REMOVED, "d.py", ONE, {})]}),
    "another member": (
        replace(BASE, members=(replace(MEMBER, digest=B),)),
        {"members": [(CHANGED, "d.py", {"digest": str(A)}, {"digest": str(B)})]},
    ),
    "a dag from another member": (
        replace(BASE, dags=(replace(DAG, member="e.py"),)),
        {"dags": [(CHANGED, "d", {"member": "d.py"}, {"member": "e.py"})]},
    ),
    "a dag less": (
        replace(BASE, dags=()),
        {
            "dags": [(REMOVED, "d", {"member": "d.py"}, {})],
            "tasks": [(REMOVED, "d/t", TOLD, {})],
            "connections": ((), ("db",)),
            "unix_users": ((), ("etl",)),
        },
    ),
    "a task more, like the other": (
        with_tasks(TASK, replace(TASK, task_id="u")),
        {"tasks": [(ADDED, "d/u", {}, TOLD)]},
    ),
    "a task with another digest": (
        with_tasks(replace(TASK, digest=B)),
        {"tasks": [(DIGEST, "d/t", {"digest": str(A)}, {"digest": str(B)})]},
    ),
    "a task of another user": (
        with_tasks(replace(TASK, run_as_user="root_like", digest=B)),
        {
            "tasks": [
                (CHANGED, "d/t", {"digest": str(A), "run_as_user": "etl"}, {"digest": str(B), "run_as_user": "root_like"})
            ],
            "unix_users": (("root_like",), ("etl",)),
        },
    ),
    "a task that names no user": (
        with_tasks(replace(TASK, run_as_user=None)),
        {"tasks": [(CHANGED, "d/t", {"run_as_user": "etl"}, {"run_as_user": None})], "unix_users": ((), ("etl",))},
    ),
    "a connection more": (
        with_tasks(replace(TASK, connections=("db", "vault"))),
        {
            "tasks": [(CHANGED, "d/t", {"connections": ["db"]}, {"connections": ["db", "vault"]})],
            "connections": (("vault",), ()),
        },
    ),
    "a connection that another task has already": (
        with_tasks(replace(TASK, connections=()), replace(TASK, task_id="u")),
        {"tasks": [(CHANGED, "d/t", {"connections": ["db"]}, {"connections": []}), (ADDED, "d/u", {}, TOLD)]},
    ),
    **{
        f"another {name}": (
            replace(BASE, **{name: value}),
            {"settings": [(CHANGED, name, {"value": getattr(BASE, name)}, {"value": value})]},
        )
        for name, value in {
            "owner": "bob", "group": "others", "task_check": "archive", "isolation": "strict", "airflow_version": "3.4",
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_change(case: str) -> None:
    after, expected = CASES[case]
    found = differences.between(BASE, after)
    assert told(found) == expected
    assert found.same is (not expected)


@pytest.mark.parametrize("case", CASES)
def test_backwards_it_is_the_opposite(case: str) -> None:
    after, _ = CASES[case]
    forth, back = differences.between(BASE, after), differences.between(after, BASE)
    opposite = {ADDED: REMOVED, REMOVED: ADDED}
    for what in ("settings", "members", "dags", "tasks"):
        turned = [(opposite.get(c.change, c.change), c.name, c.after, c.before) for c in getattr(back, what)]
        assert turned == [(c.change, c.name, c.before, c.after) for c in getattr(forth, what)]
    for what in ("connections", "unix_users"):
        assert (getattr(back, what).gained, getattr(back, what).lost) == (
            getattr(forth, what).lost,
            getattr(forth, what).gained,
        )


def test_every_field_of_a_manifest_is_compared_or_is_each_releases_own() -> None:
    """A field that is added to the manifest later must not be overlooked here."""
    own = {"archive", "number", "digest", "size", "submitted_by", "created_at"}
    assert set(Manifest.__dataclass_fields__) == own | set(differences.SETTINGS) | {"members", "dags"}
