"""What is uploaded and launched: DAGs that differ in a comment, so that no two have the same bytes."""

from __future__ import annotations

import os
import secrets

from vocabulary import zipwriter

SMALL_BYTES, LARGE_BYTES = 4 * 1024, 1024 * 1024


def noop(dag_id: str, *, run_as_user: str | None = None) -> str:
    """A DAG with one task that does nothing."""
    more = f", run_as_user={run_as_user!r}" if run_as_user else ""
    return (
        "from airflow.sdk import DAG, task\n\n"
        f"with DAG({dag_id!r}, schedule=None, catchup=False):\n\n"
        f"    @task(task_id='noop'{more})\n"
        "    def noop():\n        pass\n\n    noop()\n"
    )


def small_py(dag_id: str, size: int = SMALL_BYTES) -> bytes:
    """4 KiB of Python, never the same bytes twice."""
    source = noop(dag_id)
    while len(source) < size:
        source += f"# {secrets.token_hex(38)}\n"[: size - len(source)]
    return source.encode()


def large_zip(dag_id: str) -> bytes:
    """1 MiB: a small DAG beside one file of random bytes, which no compression makes smaller."""
    files = {f"{dag_id}.py": noop(dag_id).encode(), "table.bin": b""}
    files["table.bin"] = os.urandom(LARGE_BYTES - len(zipwriter.pack(files)))
    return zipwriter.pack(files)
