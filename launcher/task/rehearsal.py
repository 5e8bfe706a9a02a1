"""One walk through what every task does, in a fork that waits for its job, so that the job does not pay for it.

A fork shares its memory with the warm process until it writes: the first walk copies some thousand pages and fills the
interpreter's caches. The archive is ours, its log goes nowhere, and what it left in this process is put back.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from airflow.sdk.definitions._internal.dag_parsing_context import _airflow_parsing_context_manager

from integrity import messages
from integrity.digests import Digest
from launcher.task import describe, logs, runner, secrets
from launcher.task.discover import ImportedArchive
from launcher.task.importcomms import while_importing
from vocabulary import archives
from vocabulary.grants import Secrets

_NAME, _TASK = "dagseal_rehearsal", "one"
_SECRETS = Secrets(
    connections={_NAME: "postgresql://user:not-a-secret@host.example/database"},
    variables={},
    xcoms=(),
    run={"logical_date": "2026-01-31T00:00:00+00:00"},
).to_bytes()
_SOURCE = b"""\
from airflow.sdk import DAG, task
from airflow.sdk.bases.hook import BaseHook
with DAG("dagseal_rehearsal", schedule=None, catchup=False):
    @task
    def one():
        print(BaseHook.get_connection("dagseal_rehearsal").host)
        return 1
    one()
"""


def rehearse(purpose: str) -> None:
    """Import an archive, find its dag, take a task's digest; where tasks are run, run it."""
    archive = archives.read(f"{_NAME}.py", memoryview(_SOURCE))
    digest = Digest.of(_SOURCE)
    messages.decode(messages.encode("rehearsal", digest=str(digest), items=[None])[messages.HEADER_BYTES :])
    with _silently():
        imported = ImportedArchive(archive, copy="")
        while_importing(imported.member_of)
        with _airflow_parsing_context_manager(dag_id=_NAME, task_id=_TASK):
            dag = imported.load()[_NAME]
        describe.task_digest(dag, _TASK, digest, root=imported.root)
        if purpose == "run":
            name = runner.TaskName(task_id=_TASK, run_id=_NAME, map_index=-1, try_number=1, queue="default")
            given = Secrets.from_bytes(_SECRETS)
            with secrets.delivered_for_a_while(given):
                bundle = runner.ArchiveBundle(name=archive.name, version=str(digest), path=imported.root)
                done = runner.run(dag.dag, name, given, dags=[dag.dag], bundle=bundle)
            if done.state != "success":
                raise RuntimeError(f"the rehearsal ended {done.state}: {done.detail}")
        del sys.modules[_NAME]


@contextlib.contextmanager
def _silently() -> Iterator[None]:
    """With the log pointed at /dev/null, and the environment as it was afterwards."""
    environment, null = dict(os.environ), os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    kept = {fd: os.dup(fd) for fd in (1, 2, logs.LOG_FD)}
    for fd in kept:
        os.dup2(null, fd, inheritable=fd != logs.LOG_FD)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for fd, log in kept.items():
            os.dup2(log, fd, inheritable=fd != logs.LOG_FD)
            os.close(log)
        os.close(null)
        os.environ.clear()
        os.environ.update(environment)
