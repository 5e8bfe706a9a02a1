"""The `describe` job: which dags and tasks an archive defines, found out in the sandbox, twice.

The two variants run in interpreters with different hash seeds, clocks and process ids. What differs between them would
differ on a worker too: it is refused, naming task and field. What comes back is data, read strictly and size-capped.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from integrity import names
from integrity.errors import FetchError, InvalidArchiveError, UnsafeArchiveError
from integrity.fields import Fields
from integrity.messages import Message
from notary.context import Context
from notary.sealed import VerifiedCode, seal
from vocabulary.manifest import MAX_DAGS, MAX_TASKS, TASK_CHECKS, DagEntry


@dataclass(frozen=True, slots=True)
class Description:
    """A variant's answer: entries for the manifest, and per task the short hashes of its fields."""

    airflow_version: str
    dags: tuple[DagEntry, ...]
    fields: dict[tuple[str, str], dict[str, str]]


async def describe(context: Context, message: Message, fd: int) -> dict[str, Any]:
    """The body of `described`. Raises `ArchiveError` with the true reason, or a `SecurityError`."""
    name = message.fields.name("name", "archive")
    digest = message.fields.digest("digest")
    task_check = message.fields.choice("task_check", TASK_CHECKS)
    message.fields.done()
    with await seal(fd, digest, max_bytes=context.policy.limits.max_archive_bytes) as code:
        variants = (0, 1) if task_check == "task" else (0,)
        # Both are waited for, also when one fails: the other still passes the descriptor on.
        answers = await asyncio.gather(
            *(_variant(context, name, code, task_check, variant) for variant in variants),
            return_exceptions=True,
        )
    found = [_or_raise(answer) for answer in answers]
    if len(found) == 2:
        require_stable(*found)
    context.journal.write("describe", name=name, digest=str(digest), task_check=task_check)
    return {"airflow_version": found[0].airflow_version, "dags": [dag.to_json() for dag in found[0].dags]}


def _or_raise(answer: Description | BaseException) -> Description:
    if isinstance(answer, OSError):  # out of processes, memory, cgroups: none of it the archive's fault
        raise FetchError(f"the launcher's host: {answer}: try again") from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


async def _variant(context: Context, name: str, code: VerifiedCode, task_check: str, variant: int) -> Description:
    job = {"job": "describe", "variant": variant, "task_check": task_check}
    return read_description(await ask_sandbox(context, job, "described", name=name, code=code, variant=variant))


async def ask_sandbox(
    context: Context, job: dict[str, Any], answer_kind: str, *, name: str, code: VerifiedCode, variant: int = 0
) -> Fields:
    """Have the parser user's sandbox import the archive for `job`; the fields of its answer. Raises `ArchiveError`."""
    limits = context.policy.limits
    task = await context.pool.take(await context.kind_of_description(variant))
    try:
        job = {**job, "name": name, "digest": str(code.digest), "members": None}
        async with asyncio.timeout(limits.describe_timeout_seconds):
            await task.ask(job, code.fd)
            answer = await task.answer(answer_kind, "refused")
    except TimeoutError:
        raise InvalidArchiveError(
            "describe-timeout",
            f"importing it took over {limits.describe_timeout_seconds} s: do no work at import",
            name,
        ) from None
    except EOFError:
        raise InvalidArchiveError(
            "describe-died",
            "the process that imported it died: it exited, crashed, or went over a memory or CPU limit",
            name,
        ) from None
    finally:
        await context.pool.give_back(task)
    if answer.kind == "refused":
        raise refusal(answer.fields)
    return answer.fields


def refusal(fields: Fields) -> UnsafeArchiveError | InvalidArchiveError:
    """The error that a task process reports. It ran the archive's code, so this is its word about itself, no more."""
    kind = fields.text("error", max_chars=100)
    rule, entry = fields.text("rule", max_chars=100), fields.text("entry", max_chars=1024)
    detail = fields.text("detail", max_chars=8192)
    fields.done()
    error = UnsafeArchiveError if kind == UnsafeArchiveError.slug else InvalidArchiveError
    return error(rule, detail, entry)


def read_description(fields: Fields) -> Description:
    """Read strictly what a process that ran hostile code says. Raises `MalformedError`."""
    version = fields.text("airflow_version", max_chars=100)
    dags, field_hashes = [], {}
    for item in fields.items("dags", max_items=MAX_DAGS):
        dag = Fields(item, "dag")
        dag_id, member = dag.name("dag_id", "dag_id"), dag.text("member", max_chars=1024)
        tasks = []
        for task in dag.items("tasks", max_items=MAX_TASKS):
            entry = Fields(task, "task")
            hashes = Fields(entry.take("fields"), "fields")
            task_id = names.check("task_id", task.get("task_id"))
            field_hashes[dag_id, task_id] = {key: hashes.text(key, max_chars=128) for key in hashes.keys()}
            tasks.append({key: value for key, value in task.items() if key != "fields"})
        dag.done()
        dags.append(DagEntry.from_json({"dag_id": dag_id, "member": member, "tasks": tasks}))
    fields.done()
    return Description(version, tuple(dags), field_hashes)


def require_stable(one: Description, two: Description) -> None:
    """Raise `InvalidArchiveError` naming the first difference between the two variants."""
    if [dag.dag_id for dag in one.dags] != [dag.dag_id for dag in two.dags]:
        raise _unstable("which dags there are")
    for first, second in zip(one.dags, two.dags, strict=True):
        if [task.task_id for task in first.tasks] != [task.task_id for task in second.tasks]:
            raise _unstable(f"dag {first.dag_id}: which tasks there are")
        for task, again in zip(first.tasks, second.tasks, strict=True):
            if task != again:
                a, b = one.fields[first.dag_id, task.task_id], two.fields[first.dag_id, task.task_id]
                fields = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
                raise _unstable(f"dag {first.dag_id}, task {task.task_id}: {', '.join(fields) or 'its digest'}")


def _unstable(what: str) -> InvalidArchiveError:
    return InvalidArchiveError(
        "unstable",
        f"{what}: changes from one import to the next (clock, random, hash order, process id?): make it constant, or push"
        " with --task-check archive to give up the per-task check",
    )
