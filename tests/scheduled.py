"""What stands around the executors: dagseal's API as far as a scheduler reaches it, and Airflow's executors with nobody at the
other end of their queues."""

from __future__ import annotations

import json
import multiprocessing
import uuid
from collections.abc import Callable
from typing import Any

import httpx

from tests import supervised  # first: Airflow is to find its settings made

from airflow.executors.base_executor import BaseExecutor  # isort: skip
from airflow.executors.workloads import BundleInfo, ExecuteCallback, ExecuteTask  # isort: skip
from airflow.executors.workloads.callback import CallbackDTO  # isort: skip
from airflow.executors.workloads.task import TaskInstanceDTO  # isort: skip

from dagseal.airflow.celery_executor import SealedCeleryExecutor  # isort: skip
from dagseal.airflow.executors import SealedLocalExecutor  # isort: skip
from dagseal.airflow.recheck import Recheck
from dagseal.airflow.reserving import Reserver
from integrity import canonical
from integrity.digests import Digest

SCHEDULER = {
    **supervised.COORDINATOR,
    "AIRFLOW__DAGSEAL__SERVER": "https://dagseal.example",
    "AIRFLOW__DAGSEAL__TOKEN_FILE": "/none",
    "AIRFLOW__API_AUTH__JWT_SECRET": "x" * 64,
    "AIRFLOW__CELERY__BROKER_URL": "memory://",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "300",
}
ARCHIVE = Digest.of(b"etl.py")
ENTRY = {"task_id": "load", "task_type": "BashOperator", "retries": 2}
STORED = {"dag": {"dag_id": "etl", "tasks": [{"__var": ENTRY, "__type": "operator"}]}}
SET = canonical.dump({"v": 1, "releases": [{"archive": "etl.py", "number": 3, "digest": str(ARCHIVE)}]})
VERSION = Digest.of(SET).hex


class Api:
    """dagseal's API, as far as a scheduler reaches it."""

    def __init__(self) -> None:
        self.batches: list[list[dict[str, Any]]] = []
        self.down = False
        self.refuses = ""
        self.bend: Callable[[dict[str, Any]], dict[str, Any]] = lambda answer: answer

    def answer(self, request: httpx.Request) -> httpx.Response:
        if self.down:
            raise httpx.ConnectError("refused")
        assert request.headers["Authorization"] == "Bearer the-token"
        if request.url.path.startswith("/v1/sets/"):
            known = request.url.path.endswith(VERSION)
            return httpx.Response(200, content=SET) if known else httpx.Response(404, json={"detail": "no such set"})
        asked = json.loads(request.content)["reservations"]
        self.batches.append(asked)
        answers = [
            {
                "task_instance": one["task_instance"],
                "queueing": one["queueing"],
                "launch_id": uuid.uuid4().hex,
                "state": "refused" if self.refuses else "queued",
                "error": self.refuses,
                "detail": "",
            }
            for one in asked
        ]
        return httpx.Response(200, json=self.bend({"reservations": answers}))


class Sent:
    """LocalExecutor's queue, whose other end nobody reads."""

    def __init__(self) -> None:
        self.items: list[Any] = []

    def put(self, workload: Any) -> None:
        self.items.append(workload)


class Local(SealedLocalExecutor):
    def __init__(self) -> None:
        super().__init__(parallelism=1000)
        self.activity_queue, self.workers = Sent(), {}
        self._unread_messages = multiprocessing.Value("I")

    def _check_workers(self) -> None:
        """No worker process is started here."""

    def sync(self) -> None:
        """And so none has anything to tell."""

    @property
    def sent(self) -> list[Any]:
        return list(self.activity_queue.items)


class Celery(SealedCeleryExecutor):
    def __init__(self) -> None:
        super().__init__(parallelism=1000)
        self.sent: list[Any] = []

    def _send_workloads_to_celery(self, tuples: Any) -> list[Any]:
        """There is no broker."""
        self.sent += [workload for _, workload, *_ in tuples]
        return [(key, None, None) for key, *_ in tuples]


def task(executor: BaseExecutor, *, version: str | None = VERSION, **more: Any) -> ExecuteTask:
    named = {"task_id": "load", "dag_id": "etl", "run_id": "r1", "try_number": 1, "map_index": -1, "queue": "default"}
    ti = TaskInstanceDTO(
        id=uuid.uuid4(), dag_version_id=uuid.uuid4(), pool_slots=1, priority_weight=1, **(named | more)
    )
    return ExecuteTask(
        ti=ti,
        dag_rel_path="etl.py",
        token=ExecuteTask.generate_token(str(ti.id), executor.jwt_generator),
        bundle_info=BundleInfo(name="dagseal", version=version),
        log_path="x.log",
    )


def queue(executor: Any, *workloads: Any) -> None:
    for workload in workloads:
        executor.queue_workload(workload, session=None)


def connected(executor: Any, api: Api) -> Any:
    """`executor`, whose reservations `api` answers."""
    executor._reserver = Reserver(
        "https://dagseal.example", token=lambda: "the-token", transport=httpx.MockTransport(api.answer)
    )
    executor._recheck = Recheck(lambda version: STORED, executor._reserver.releases)
    return executor


def callback() -> ExecuteCallback:
    return ExecuteCallback(
        callback=CallbackDTO(
            id=str(uuid.uuid4()), fetch_method="import_path", data={"path": "os.system", "kwargs": {}}
        ),
        dag_rel_path="etl.py",
        token="t",
        bundle_info=BundleInfo(name="dagseal", version=VERSION),
        log_path="x.log",
    )
