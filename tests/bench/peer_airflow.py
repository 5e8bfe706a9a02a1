"""The peer: Airflow's own `supervise_task`, in a process that has its supervisor and task modules imported already.

`python -m tests.bench.peer_airflow` reads lines of a dag id and a run id, runs that DAG's task once per line, and answers
with a line of JSON: seconds until Airflow reported `success` to its API, and until `supervise_task` returned. Its API is
a function in this process (no HTTP, no database, no scheduler), so only supervisor and task are measured.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.task.warm import PRELOADED
from tests.bench.measures import ROOT

MODULES = (
    *(name for name in PRELOADED if not name.startswith("launcher.")),
    "airflow.dag_processing.bundles.local",
    "airflow.dag_processing.bundles.manager",
    "airflow.dag_processing.dagbag",
    "airflow.executors.workloads.base",
    "airflow.executors.workloads.task",
)


@dataclass(slots=True)
class Peer:
    """The started process. `folder` holds its DAGs; everybody may read them, as the task's user has to."""

    process: subprocess.Popen[str]
    runs: int = 0

    def run(self, dag_id: str) -> tuple[float, float]:
        """Seconds to the reported `success`, and to the supervisor's end."""
        assert self.process.stdin and self.process.stdout
        self.runs += 1
        self.process.stdin.write(f"{dag_id} bench-{self.runs}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the peer process died")
        answer = json.loads(line)
        if answer["state"] != "success":
            raise RuntimeError(f"Airflow's own run ended as {answer['state']}: {answer['log']}")
        return answer["reported"], answer["returned"]


@contextmanager
def peer(dags: Mapping[str, str]) -> Iterator[Peer]:
    """Start it with these DAG files (id to source); end it and remove its folder afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="dagseal-bench-"))
    folder.chmod(0o755)
    process = None
    try:
        (folder / "dags").mkdir(mode=0o755)
        for dag_id, source in dags.items():
            (folder / "dags" / f"{dag_id}.py").write_text(source)
        with (folder / "peer.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-s", "-m", "tests.bench.peer_airflow"],
                cwd=ROOT,
                env=_environment(folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        yield Peer(process)
    finally:
        if process is not None and process.stdin:
            process.stdin.close()
            process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _environment(folder: Path) -> dict[str, str]:
    bundle = {
        "name": "bench",
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(folder / "dags")},
    }
    return {
        **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
        "HOME": str(folder),
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite://",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(folder / "logs"),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([bundle]),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH": str(folder / "bundles"),
    }


class Api:
    """What the supervisor asks of the execution API, answered at once; notes when the task was reported as ended."""

    def __init__(self) -> None:
        self.state, self.reported = "", 0.0

    def answer(self, request: Any) -> Any:
        import httpx

        if request.url.path.endswith("/run"):
            return httpx.Response(200, json=_context())
        if request.url.path.endswith("/state"):
            self.state, self.reported = json.loads(request.content).get("state", ""), time.perf_counter()
        return httpx.Response(204)


def _context() -> dict[str, Any]:
    at = "2026-01-01T00:00:00Z"
    times = dict.fromkeys(("logical_date", "data_interval_start", "data_interval_end", "run_after", "start_date"), at)
    run = {"dag_id": "bench", "run_id": "bench", "end_date": None, "run_type": "manual", "state": "running", **times}
    return {"dag_run": {**run, "conf": {}, "consumed_asset_events": [], "partition_key": None}, "max_tries": 0}


def _run(dag_id: str, run_id: str) -> dict[str, Any]:
    import httpx
    from airflow.executors.workloads.base import BundleInfo
    from airflow.executors.workloads.task import TaskInstanceDTO
    from airflow.sdk.api.client import Client
    from airflow.sdk.execution_time.supervisor import supervise_task

    ti = TaskInstanceDTO(
        id=uuid.uuid4(), dag_version_id=uuid.uuid4(), dag_id=dag_id, task_id="noop", run_id=run_id,
        try_number=1, queue="default", pool_slots=1, priority_weight=1,
    )  # fmt: skip
    api = Api()
    client = Client(base_url=None, dry_run=True, token="", transport=httpx.MockTransport(api.answer))
    begin = time.perf_counter()
    supervise_task(
        ti=ti,
        bundle_info=BundleInfo(name="bench", version=None),
        dag_rel_path=f"{dag_id}.py",
        token="",
        client=client,
        log_path=f"{run_id}.log",
    )
    returned = time.perf_counter() - begin
    log = Path(os.environ["AIRFLOW__LOGGING__BASE_LOG_FOLDER"]) / f"{run_id}.log"
    return {"state": api.state, "reported": api.reported - begin, "returned": returned, "log": log.read_text()[-2000:]}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # Airflow logs to stdout
    for name in MODULES:
        importlib.import_module(name)
    for line in sys.stdin:
        answers.write(json.dumps(_run(*line.split())) + "\n")


if __name__ == "__main__":
    main()
