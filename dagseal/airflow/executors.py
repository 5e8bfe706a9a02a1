"""Airflow's executors, which reserve before they send: what no reservation names gets no ticket from any worker.

Each queueing of a task instance is reserved in one batched call, with the set of releases that its run is pinned to and the
digest of Airflow's own serialised task. The API's refusal of one goes the way of the task: the worker writes it to its log.

Promise: nothing that Airflow would run outside dagseal is sent. A callback, a task of a queue that no coordinator of dagseal's
serves and a run without a version are failed here, and the scheduler's log says what to do; while the API does not answer,
nothing is sent and everything stays queued. With `enforce = false` all of it is sent, and the log tells what would be refused.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from airflow.configuration import conf
from airflow.executors.local_executor import LocalExecutor
from airflow.executors.workloads import ExecuteTask

from dagseal.airflow import recheck, settings
from dagseal.airflow.recheck import Recheck
from dagseal.airflow.reserving import Reservation, Reserver
from integrity import names
from integrity.errors import DagsealError, MalformedError

COORDINATORS = frozenset({"dagseal.airflow.SealedCoordinator", "dagseal.airflow.coordinator.SealedCoordinator"})
AGAIN_SECONDS = 5.0
_SET = re.compile(r"[0-9a-f]{128}")


class Sealing:
    """What `SealedLocalExecutor` and `SealedCeleryExecutor` put before Airflow's `_process_workloads`."""

    supports_connection_test = False  # the worker's user would open a connection that nobody was granted
    _not_before = 0.0

    @cached_property
    def _settings(self) -> settings.Scheduler:
        return settings.scheduler()

    @cached_property
    def _reserver(self) -> Reserver:
        path = self._settings.token_file
        return Reserver(self._settings.server, token=lambda: settings.token(path), ca_file=self._settings.ca_file)

    @cached_property
    def _recheck(self) -> Recheck:
        return Recheck(recheck.stored, self._reserver.releases)

    @cached_property
    def _served(self) -> frozenset[str]:
        return served_queues(conf.getjson("sdk", "coordinators", fallback={}), queues(conf))

    def start(self: Any) -> None:
        """Raises `SettingsError` here rather than at the first task."""
        settings.token(self._settings.token_file)
        if not self._settings.enforce:
            self.log.error("dagseal (not enforced): [dagseal] enforce = false; what would be refused runs all the same")
        super().start()  # type: ignore[misc]

    def _process_workloads(self: Any, workload_items: Sequence[Any]) -> None:
        admitted = []
        for workload in workload_items:
            if reason := unsealable(workload, self._served):
                self._refuse(workload, reason)
                if self._settings.enforce:
                    continue
            admitted.append(workload)
        admitted = self._reserved(admitted)
        if admitted:
            super()._process_workloads(admitted)  # type: ignore[misc]

    def _refuse(self: Any, workload: Any, reason: str) -> None:
        key = workload.key
        if not self._settings.enforce:
            self.log.error("dagseal (not enforced): %s: %s", key, reason)
            return
        self.log.error("dagseal: %s is not sent: %s", key, reason)
        self.queued_tasks.pop(key, None)
        self.queued_callbacks.pop(key, None)
        self.queued_connection_tests.pop(key, None)
        self.log_task_event(event="dagseal refused", extra=reason, ti_key=key)
        self.fail(key, reason)

    def _reserved(self: Any, workloads: list[Any]) -> list[Any]:
        """Those that may be sent; with `enforce` none that has no launch on the API's record."""
        sealable = [one for one in workloads if not unsealable(one, self._served)]
        unasked = [] if self._settings.enforce else workloads
        if not sealable or time.monotonic() < self._not_before:
            return unasked
        try:
            answers = self._reserver.reserve([self._reservation(workload) for workload in sealable])
        except DagsealError as error:
            self._not_before = time.monotonic() + AGAIN_SECONDS
            outcome = "stay queued" if self._settings.enforce else "are sent without a reservation (not enforced)"
            self.log.error("dagseal: %d tasks %s: %s", len(sealable), outcome, error)
            return unasked
        recorded = []
        for workload, answer in zip(sealable, answers, strict=True):
            reason = f"{answer.error}: {answer.detail}"
            if answer.launch_id is None:
                self._refuse(workload, reason)
                continue
            recorded.append(workload)
            if answer.error:
                self.log.warning("dagseal: %s is refused: %s", workload.key, reason)
        return unasked or recorded

    def _reservation(self: Any, workload: Any) -> Reservation:
        ti, set_hex = workload.ti, workload.bundle_info.version
        return Reservation(
            task_instance=str(ti.id),
            queueing=queueing(workload.token),
            dag_id=ti.dag_id,
            task_id=ti.task_id,
            run_id=ti.run_id,
            map_index=-1 if ti.map_index is None else ti.map_index,
            try_number=ti.try_number,
            queue=ti.queue or "default",
            set=set_hex,
            task_digest=self._recheck.digest(
                dag_version=str(ti.dag_version_id),
                path=str(workload.dag_rel_path),
                dag_id=ti.dag_id,
                task_id=ti.task_id,
                set_hex=set_hex,
            ),
            valid_seconds=self._settings.valid_seconds,
        )


class SealedLocalExecutor(Sealing, LocalExecutor):  # type: ignore[misc]
    """One machine."""

    def start(self: Any) -> None:
        """Raises `SettingsError`."""
        if self.is_mp_using_fork:
            prepare(self._served)
        super().start()


def prepare(served: Iterable[str]) -> None:
    """Import and build what the worker of these queues' tasks needs: it is a fork of this process, and would do so itself for
    its first task, which takes longer than the task. Raises `SettingsError`."""
    from airflow.sdk.api.client import Client
    from airflow.sdk.execution_time.coordinator import get_coordinator_manager

    for queue in served:
        get_coordinator_manager().for_queue(queue)
    Client(base_url="http://localhost", token="").close()  # its TLS context is one for the process


def queueing(token: str) -> str:
    """One name for each time that a task instance is queued: Airflow puts a random id into each workload's token."""
    return hashlib.sha256(token.encode()).hexdigest()


def queues(source: Any) -> dict[str, str]:
    """Queue to coordinator's name, as Airflow's workers read it."""
    return dict(source.getjson("sdk", "queue_to_coordinator", fallback={}))


def served_queues(coordinators: dict[str, Any], by_queue: dict[str, str]) -> frozenset[str]:
    """The queues whose tasks go through dagseal, if the workers are configured as this scheduler is."""
    ours = {name for name, spec in coordinators.items() if spec.get("classpath") in COORDINATORS}
    return frozenset(queue for queue, name in by_queue.items() if name in ours)


def unsealable(workload: Any, served: Iterable[str]) -> str:
    """Why this cannot go through dagseal, and what to do; empty if it can."""
    if not isinstance(workload, ExecuteTask):
        return (
            f"{type(workload).__name__}: Airflow runs it as the worker's own user, outside dagseal; "
            "make it a task of the DAG, or its on_failure_callback"
        )
    queue = workload.ti.queue or "default"
    if queue not in served:
        return (
            f"no coordinator of dagseal's serves queue {queue!r}; add to [sdk] queue_to_coordinator of scheduler and workers: "
            f'"{queue}": "dagseal"'
        )
    try:
        for kind in ("dag_id", "task_id", "run_id"):
            names.check(kind, getattr(workload.ti, kind))
        names.check("queue", queue)
    except MalformedError as error:
        return f"{error}; dagseal has no record of such a name"
    if not _SET.fullmatch(workload.bundle_info.version or ""):
        return (
            f"its run has no version of a set of releases (bundle {workload.bundle_info.name!r}); let the DAG come from "
            "dagseal.airflow.SealedBundle, leave [dag_processor] disable_bundle_versioning off, and start a new run"
        )
    return ""
