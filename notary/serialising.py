"""The `serialise` job: every dag of an archive as Airflow's dag processor stores it, made in the sandbox of descriptions.

Once, not twice: nothing is decided by it. What comes back is the word of a process that ran the archive's code: its frame is
read strictly and size-capped, the text in it is not parsed here.
"""

from __future__ import annotations

from typing import Any

from integrity.errors import FetchError, MalformedError
from integrity.fields import Fields
from integrity.messages import MAX_FRAME_BYTES, Message
from notary.context import Context
from notary.describing import ask_sandbox
from notary.sealed import seal
from vocabulary.manifest import MAX_DAGS, TASK_CHECKS


async def serialise(context: Context, message: Message, fd: int) -> dict[str, Any]:
    """The body of `serialised`. Raises `ArchiveError` with the true reason, or a `SecurityError`."""
    name = message.fields.name("name", "archive")
    digest = message.fields.digest("digest")
    task_check = message.fields.choice("task_check", TASK_CHECKS)
    message.fields.done()
    job = {"job": "serialise", "task_check": task_check}
    try:
        with await seal(fd, digest, max_bytes=context.policy.limits.max_archive_bytes) as code:
            found = await ask_sandbox(context, job, "serialised", name=name, code=code)
    except OSError as error:  # out of processes, memory, cgroups: none of it the archive's fault
        raise FetchError(f"the launcher's host: {error}: try again") from None
    answer = read_serialised(found)
    context.journal.write("serialise", name=name, digest=str(digest), task_check=task_check)
    return answer


def read_serialised(fields: Fields) -> dict[str, Any]:
    """Raises `MalformedError`."""
    version = fields.text("airflow_version", max_chars=100)
    dags = [_dag(Fields(item, "dag")) for item in fields.items("dags", max_items=MAX_DAGS)]
    fields.done()
    ids = [dag["dag_id"] for dag in dags]
    if ids != sorted(set(ids)):
        raise MalformedError("the dags of an archive are to be sorted, each named once")
    return {"airflow_version": version, "dags": dags}


def _dag(fields: Fields) -> dict[str, str]:
    dag = {
        "dag_id": fields.name("dag_id", "dag_id"),
        "member": fields.text("member", max_chars=1024),
        "data": fields.text("data", max_chars=MAX_FRAME_BYTES),
    }
    fields.done()
    return dag
