"""What differs between two releases, by their manifests alone: what a reviewer looks at before code is launched.

Members by digest and size; dags; tasks by what the manifest says of them; connections and unix users that the release as a
whole gained or lost; and the settings that it is launched with. A task's digest binds the archive's bytes, so with other
bytes every task has another one: where nothing else of it changed it is listed as `digest`. The code itself is not compared,
nor is it read: that a member changed says nothing of how.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from vocabulary.manifest import DagEntry, Manifest, Member, TaskEntry

ADDED, REMOVED, CHANGED, DIGEST = "added", "removed", "changed", "digest"
SETTINGS = ("owner", "group", "task_check", "isolation", "require_caller", "airflow_version")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """`before` is empty for what was added, `after` for what was removed; else both hold what differs, and only that."""

    change: str
    name: tuple[str, ...]
    before: Mapping[str, Any]
    after: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sets:
    gained: tuple[str, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """Names of tasks are (dag_id, task_id); everything is sorted by name."""

    settings: tuple[Change, ...]
    members: tuple[Change, ...]
    dags: tuple[Change, ...]
    tasks: tuple[Change, ...]
    connections: Sets
    unix_users: Sets

    @property
    def same(self) -> bool:
        """Whether nothing that is compared differs."""
        return not (self.settings or self.members or self.dags or self.tasks)


def between(before: Manifest, after: Manifest) -> Differences:
    """What changed from one to the other."""
    tasks = _tasks(before), _tasks(after)
    return Differences(
        settings=_changes({(name,): _setting(before, name) for name in SETTINGS},
                          {(name,): _setting(after, name) for name in SETTINGS}),
        members=of_members(before.members, after.members),
        dags=_changes({(dag.dag_id,): _dag(dag) for dag in before.dags}, {(dag.dag_id,): _dag(dag) for dag in after.dags}),
        tasks=_changes(*({name: _task(task) for name, task in side.items()} for side in tasks)),
        connections=_sets(*({c for task in side.values() for c in task.connections} for side in tasks)),
        unix_users=_sets(*({t.run_as_user for t in side.values() if t.run_as_user is not None} for side in tasks)),
    )  # fmt: skip


def of_members(before: Iterable[Member], after: Iterable[Member]) -> tuple[Change, ...]:
    """The files alone, for bytes that nobody described yet."""
    return _changes({(m.name,): _member(m) for m in before}, {(m.name,): _member(m) for m in after})


def _changes(
    before: Mapping[tuple[str, ...], Mapping[str, Any]], after: Mapping[tuple[str, ...], Mapping[str, Any]]
) -> tuple[Change, ...]:
    found = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            change = ADDED if old is None else REMOVED
            found.append(Change(change=change, name=name, before=old or {}, after=new or {}))
            continue
        keys = [key for key in old if old[key] != new[key]]
        if keys:
            change = DIGEST if keys == ["digest"] and "operator" in old else CHANGED
            differing = {key: old[key] for key in keys}, {key: new[key] for key in keys}
            found.append(Change(change=change, name=name, before=differing[0], after=differing[1]))
    return tuple(found)


def _sets(before: set[str], after: set[str]) -> Sets:
    return Sets(gained=tuple(sorted(after - before)), lost=tuple(sorted(before - after)))


def _tasks(manifest: Manifest) -> dict[tuple[str, ...], TaskEntry]:
    return {(dag.dag_id, task.task_id): task for dag in manifest.dags for task in dag.tasks}


def _setting(manifest: Manifest, name: str) -> dict[str, Any]:
    return {"value": getattr(manifest, name)}


def _member(member: Member) -> dict[str, Any]:
    return {"size": member.size, "digest": str(member.digest)}


def _dag(dag: DagEntry) -> dict[str, Any]:
    return {"member": dag.member}


def _task(task: TaskEntry) -> dict[str, Any]:
    told = task.to_json()
    del told["task_id"]
    return told
