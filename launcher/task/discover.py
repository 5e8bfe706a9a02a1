"""Imports an archive and collects the dags that it defines, as Airflow's own importer does.

A `.py` is imported always. Of a zip the top-level modules are imported that Airflow would take for DAG files by its default
heuristic (they say "airflow", and "dag" or "asset"); the others are imported when these ask for them. A dag is found as a
module's global, or because it registered itself. Differs from Airflow in what is refused: a module that raises refuses the
whole archive, and so do two dags of one id. Host policies (`airflow_local_settings`) are applied.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType

from airflow import settings
from airflow.exceptions import AirflowClusterPolicySkipDag
from airflow.sdk import DAG
from airflow.sdk.definitions._internal.contextmanager import DagContext

from integrity import names
from integrity.errors import InvalidArchiveError, MalformedError
from launcher.task import loader, refusals
from launcher.task.files import PrivateCopy
from vocabulary import taskdigest
from vocabulary.archives import Archive, ArchiveMember


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundDag:
    """One dag and the member that defines it."""

    dag: DAG
    member: str


class ImportedArchive:
    """An archive on its way through the interpreter. `root` stands for it in every path; a zip's is its private
    copy, made at the path `copy`."""

    def __init__(self, archive: Archive, *, copy: str) -> None:
        self._archive = archive
        self._copy = PrivateCopy(archive, copy) if archive.kind == "zip" else None
        self.root = self._copy.root if self._copy else taskdigest.ARCHIVE_ROOT

    def member_of(self, path: str) -> str | None:
        """Which member a source path is, or None."""
        return path[len(self.root) + 1 :] if path.startswith(self.root + os.sep) else None

    def load(self) -> dict[str, FoundDag]:
        """Import, and collect the dags by id. Raises `InvalidArchiveError` or `UnsafeArchiveError`."""
        DagContext.autoregistered_dags.clear()
        modules = self._import_py() if self._archive.kind == "py" else self._import_zip()
        DagContext.current_autoregister_module_name = None
        return _check(_collect(modules), self._archive)

    def remove(self) -> None:
        """Delete the private copy."""
        if self._copy:
            self._copy.remove()

    def _import_py(self) -> list[tuple[str, ModuleType]]:
        (member,) = self._archive.members
        name = loader.module_name(self._archive.name.rpartition(".")[0])
        loader.refuse_shadowing([(name, member.name)])
        return [(member.name, self._import(name, member))]

    def _import_zip(self) -> list[tuple[str, ModuleType]]:
        members = [member for member in self._archive.members if member.name.endswith(".py")]
        tops = {member.name.partition("/")[0].removesuffix(".py"): member.name for member in members}
        loader.refuse_shadowing(sorted(tops.items()))
        loader.install(self._archive, self.root)
        return [
            (member.name, self._import(member.name.removesuffix(".py"), member))
            for member in members
            if _might_define_dags(member)
        ]

    def _import(self, name: str, member: ArchiveMember) -> ModuleType:
        path = f"{self.root}/{member.name}"
        try:
            loader.compile_ahead(path, member.data)
        except (MemoryError, RecursionError) as error:
            raise refusals.too_complex(error, member.name) from None
        except (SyntaxError, ValueError) as error:
            raise refusals.of_import(error, member.name, self.member_of) from None
        DagContext.current_autoregister_module_name = name
        try:
            if self._archive.kind == "zip":
                return importlib.import_module(name)
            return loader.import_single(name, path, member.data)
        except BaseException as error:
            # The author's code: whatever it raises, KeyboardInterrupt and SystemExit included, is its refusal.
            raise refusals.of_import(error, member.name, self.member_of) from error


def _might_define_dags(member: ArchiveMember) -> bool:
    if "/" in member.name or member.name == "__init__.py":
        return False
    text = member.data.lower()
    return b"airflow" in text and (b"dag" in text or b"asset" in text)


def _collect(modules: Iterable[tuple[str, ModuleType]]) -> list[FoundDag]:
    """Each dag object once, with the first module that shows it."""
    found: dict[int, FoundDag] = {}
    member_by_module = {}
    for member, module in modules:
        member_by_module[id(module)] = member
        for value in list(vars(module).values()):
            if isinstance(value, DAG):
                found.setdefault(id(value), FoundDag(dag=value, member=member))
    for dag, module in DagContext.autoregistered_dags:
        found.setdefault(id(dag), FoundDag(dag=dag, member=member_by_module[id(module)]))
    DagContext.autoregistered_dags.clear()
    return sorted(found.values(), key=lambda one: (one.member, one.dag.dag_id))


def _check(found: list[FoundDag], archive: Archive) -> dict[str, FoundDag]:
    """What Airflow does before it puts a dag into its bag."""
    dags: dict[str, FoundDag] = {}
    for one in found:
        dag, dag_id = one.dag, one.dag.dag_id
        if dag_id in dags:
            raise InvalidArchiveError(
                "duplicate-dag-id",
                f"dag {dag_id!r} is defined twice, also in {dags[dag_id].member}: rename one",
                one.member,
            )
        module_path = sys.modules[_module_of(archive, one.member)].__file__
        dag.fileloc = str(module_path)
        dag.relative_fileloc = one.member if archive.kind == "py" else f"{archive.name}/{one.member}"
        try:
            names.check("dag_id", dag_id)
            for task_id in dag.task_dict:
                names.check("task_id", task_id)
            dag.validate()
            dag.check_cycle()
            dag.resolve_template_files()
        except MalformedError as error:
            raise InvalidArchiveError("invalid-dag", refusals.shorten(f"dag {dag_id!r}: {error}"), one.member) from None
        except Exception as error:  # Airflow's checks run the author's operators and timetables
            raise InvalidArchiveError(
                "invalid-dag", refusals.shorten(f"dag {dag_id!r}: {refusals.describe(error)}"), one.member
            ) from error
        if _policy_admits(one):
            dags[dag_id] = one
    if not dags:
        raise InvalidArchiveError("no-dag-found", "the archive defines no dag: nothing in it can be launched")
    return dags


def _policy_admits(one: FoundDag) -> bool:
    try:
        settings.dag_policy(one.dag)
        for task in one.dag.tasks:
            settings.task_policy(task)
    except AirflowClusterPolicySkipDag:
        return False
    except Exception as error:  # the host's own policy code: what it raises is its verdict
        raise InvalidArchiveError(
            "cluster-policy", refusals.shorten(f"dag {one.dag.dag_id!r}: {refusals.describe(error)}"), one.member
        ) from error
    return True


def _module_of(archive: Archive, member: str) -> str:
    stem = member.removesuffix(".py")
    return loader.module_name(stem) if archive.kind == "py" else stem
