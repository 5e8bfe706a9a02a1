"""Answers what a task asks of its supervisor, inside the task: there is no supervisor process, API server or database.
A supervised task has one, and asks it (`launcher.task.supervised`), but for what `launcher.task.granted` answers.

Promise: every message that the Task SDK can send is in the table at the end, and each is answered from this launch's own
archive and grant, or refused in words that say why. What belongs to other runs, or would change the state of Airflow, is
refused: a silent wrong answer would be worse than a failed task.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import structlog
from airflow.sdk import DAG
from airflow.sdk.api.datamodels._generated import DagRun, DagRunState
from airflow.sdk.definitions.asset import Asset
from airflow.sdk.exceptions import ErrorType
from airflow.sdk.execution_time import comms

from launcher.task import mapping
from launcher.task.granted import FROM_GRANT, error, refused
from launcher.task.xcoms import OWN_DAG, XComs

log = structlog.get_logger(logger_name="task")


class TaskComms:
    """While the task runs. `outcome` is the last message that sets the task's state."""

    socket = None

    def __init__(
        self,
        *,
        dag: DAG,
        dags: Iterable[DAG],
        dag_run: DagRun,
        xcoms: XComs,
        xcom_dags: Collection[str],
        task_id: str,
        map_index: int,
    ) -> None:
        self._dag = dag
        self._dags = tuple(dags)
        self._dag_run = dag_run
        self._xcoms = xcoms
        self._xcom_dags = xcom_dags
        self._task_id = task_id
        self._map_index = map_index
        self._task_store: dict[str, Any] = {}
        self.outcome: Any = None
        self.skipped: list[str] = []

    def send(self, msg: Any) -> Any:
        answer = ANSWERS.get(type(msg))
        if answer is None:
            raise refused(f"{type(msg).__name__} is not known to this launcher")
        return answer(self, msg)

    async def asend(self, msg: Any) -> Any:
        return self.send(msg)

    # -- the task's own state

    def _set_outcome(self, msg: Any) -> None:
        self.outcome = msg

    def _skip_downstream(self, msg: comms.SkipDownstreamTasks) -> None:
        self.skipped = [str(task) for task in msg.tasks]

    def _nothing(self, msg: Any) -> None:
        """Only of use to Airflow's web pages (rendered fields)."""

    # -- XComs

    def _granted_dag(self, msg: Any) -> str:
        """Whose XComs are asked for, as the grant names it. Raises where the grant has none of it, whatever was pushed."""
        if msg.run_id != self._dag_run.run_id:
            raise refused(f"XComs of run {msg.run_id!r}: a task is given those of its own run only")
        if msg.dag_id == self._dag_run.dag_id:
            return OWN_DAG
        if msg.dag_id not in self._xcom_dags:
            raise refused(
                f"XComs of dag {msg.dag_id!r} were not granted to this task: declare that it reads them by "
                f"executor_config={{'dagseal': {{'xcom_dags': [{msg.dag_id!r}]}}}} and push again; the archive's owner has to "
                "be a member of that dag's archive"
            )
        return str(msg.dag_id)

    def _get_xcom(self, msg: comms.GetXCom) -> Any:
        value = self._xcoms.one(msg.task_id, msg.key, msg.map_index, dag_id=self._granted_dag(msg))
        return comms.XComResult(key=msg.key, value=value)

    def _xcom_values(self, msg: Any) -> list[Any]:
        return self._xcoms.all(msg.task_id, msg.key, dag_id=self._granted_dag(msg))

    def _xcom_count(self, msg: comms.GetXComCount) -> Any:
        return comms.XComCountResponse(len=len(self._xcom_values(msg)))

    def _xcom_item(self, msg: comms.GetXComSequenceItem) -> Any:
        values = self._xcom_values(msg)
        if not -len(values) <= msg.offset < len(values):
            return error(ErrorType.XCOM_NOT_FOUND, f"{msg.task_id} pushed {len(values)} XComs {msg.key!r}")
        return comms.XComSequenceIndexResult(root=values[msg.offset])

    def _xcom_slice(self, msg: comms.GetXComSequenceSlice) -> Any:
        return comms.XComSequenceSliceResult(root=self._xcom_values(msg)[msg.start : msg.stop : msg.step])

    def _set_xcom(self, msg: comms.SetXCom) -> None:
        self._require_own(msg)
        self._xcoms.push(msg.key, msg.value)

    def _delete_xcom(self, msg: comms.DeleteXCom) -> None:
        self._require_own(msg)
        self._xcoms.delete(msg.key)

    def _require_own(self, msg: Any) -> None:
        asked = (msg.dag_id, msg.run_id, msg.task_id, -1 if msg.map_index is None else msg.map_index)
        if asked != (self._dag_run.dag_id, self._dag_run.run_id, self._task_id, self._map_index):
            raise refused("a task may only push and delete XComs of its own")

    # -- this run and its history

    def _run(self, msg: comms.GetDagRun) -> Any:
        self._require_own_run(msg)
        return comms.DagRunResult(**self._dag_run.model_dump())

    def _run_state(self, msg: comms.GetDagRunState) -> Any:
        self._require_own_run(msg)
        return comms.DagRunStateResult(state=DagRunState.RUNNING)

    def _require_own_run(self, msg: Any) -> None:
        if (msg.dag_id, msg.run_id) != (self._dag_run.dag_id, self._dag_run.run_id):
            raise refused(f"run {msg.run_id!r} of dag {msg.dag_id!r}: a task is told of no run but its own")

    def _ti_count(self, msg: comms.GetTICount) -> Any:
        """Asked by mapped task groups: how often one task of this run was expanded."""
        own_run = msg.dag_id == self._dag_run.dag_id and msg.run_ids in (None, [self._dag_run.run_id])
        if not own_run or msg.states or msg.logical_dates or msg.task_group_id or len(msg.task_ids or ()) != 1:
            raise refused("the states of task instances are not known inside a task: ask Airflow's API")
        (task_id,) = msg.task_ids
        count = mapping.instances(self._dag.get_task(task_id), self._xcoms)
        if count is None:
            raise refused(f"how often {task_id!r} was expanded is not known: what it is mapped over was not pushed")
        return comms.TICount(count=count)

    def _dag_details(self, msg: comms.GetDag) -> Any:
        if msg.dag_id != self._dag.dag_id:
            raise refused(f"dag {msg.dag_id!r}: a task is told of no dag but its own")
        return comms.DagResult(
            dag_id=self._dag.dag_id,
            is_paused=False,
            bundle_name=None,
            bundle_version=None,
            relative_fileloc=self._dag.relative_fileloc,
            owners=self._dag.owner,
            tags=sorted(self._dag.tags),
            next_dagrun=None,
        )

    # -- assets

    def _asset(self, msg: Any) -> Any:
        name, uri = getattr(msg, "name", None), getattr(msg, "uri", None)
        for task in (task for dag in self._dags for task in dag.tasks):
            for asset in (*task.inlets, *task.outlets):
                if isinstance(asset, Asset) and (asset.name == name or asset.uri == uri):
                    return comms.AssetResult(name=asset.name, uri=asset.uri, group=asset.group, extra=asset.extra)
        return error(ErrorType.ASSET_NOT_FOUND, f"asset {name or uri!r} is not an inlet or outlet in this archive")

    def _asset_store_value(self, msg: Any) -> Any:
        return error(ErrorType.ASSET_STORE_NOT_FOUND, "assets keep no state between launches here")

    # -- the task's own store

    def _get_stored(self, msg: comms.GetTaskStateStore) -> Any:
        if msg.key not in self._task_store:
            return error(ErrorType.TASK_STORE_NOT_FOUND, f"nothing was stored under {msg.key!r} in this try")
        return comms.TaskStateStoreResult(value=self._task_store[msg.key])

    def _set_stored(self, msg: comms.SetTaskStateStore) -> Any:
        if not self._task_store:
            log.warning("the task state store is kept for this try only")
        self._task_store[msg.key] = msg.value
        return comms.OKResponse(ok=True)

    def _delete_stored(self, msg: comms.DeleteTaskStateStore) -> Any:
        self._task_store.pop(msg.key, None)
        return comms.OKResponse(ok=True)

    def _clear_stored(self, msg: comms.ClearTaskStateStore) -> Any:
        self._task_store.clear()
        return comms.OKResponse(ok=True)


def _constant(make: Callable[[], Any]) -> Callable[[TaskComms, Any], Any]:
    return lambda task, msg: make()


def _refuse(why: str) -> Callable[[TaskComms, Any], Any]:
    def answer(task: TaskComms, msg: Any) -> Any:
        raise refused(why)

    return answer


def _by_grant(task: TaskComms, msg: Any) -> Any:
    return FROM_GRANT[type(msg)](msg)


_NO_WRITE = "a task may not change variables: change them at dagseal's API (PUT /v1/variables)"
_NO_TRIGGER = "a task may not start a dag run here: `dagseal launch`, or Airflow's API with a granted connection"
_NO_STATES = "the states of other tasks and runs are not known inside a task: ask Airflow's API"
_NO_HUMAN = "human-in-the-loop operators need Airflow's API server, which a task does not reach"
_NO_ASSET_STORE = "assets keep no state between launches here: store it where a granted connection leads"

ANSWERS: dict[type, Callable[[TaskComms, Any], Any]] = {
    comms.SucceedTask: TaskComms._set_outcome,
    comms.TaskState: TaskComms._set_outcome,
    comms.RetryTask: TaskComms._set_outcome,
    comms.RescheduleTask: TaskComms._set_outcome,
    comms.DeferTask: TaskComms._set_outcome,
    comms.AwaitInputTask: TaskComms._set_outcome,
    comms.SkipDownstreamTasks: TaskComms._skip_downstream,
    comms.SetRenderedFields: TaskComms._nothing,
    comms.SetRenderedMapIndex: TaskComms._nothing,
    **dict.fromkeys(FROM_GRANT, _by_grant),
    comms.PutVariable: _refuse(_NO_WRITE),
    comms.DeleteVariable: _refuse(_NO_WRITE),
    comms.GetXCom: TaskComms._get_xcom,
    comms.GetXComCount: TaskComms._xcom_count,
    comms.GetXComSequenceItem: TaskComms._xcom_item,
    comms.GetXComSequenceSlice: TaskComms._xcom_slice,
    comms.SetXCom: TaskComms._set_xcom,
    comms.DeleteXCom: TaskComms._delete_xcom,
    comms.GetDagRun: TaskComms._run,
    comms.GetDagRunState: TaskComms._run_state,
    comms.GetDag: TaskComms._dag_details,
    comms.GetTICount: TaskComms._ti_count,
    comms.GetDRCount: _refuse(_NO_STATES),
    comms.GetTaskStates: _refuse(_NO_STATES),
    comms.GetTaskBreadcrumbs: _constant(lambda: comms.TaskBreadcrumbsResult(breadcrumbs=[])),
    comms.GetPreviousDagRun: _constant(lambda: comms.PreviousDagRunResult(dag_run=None)),
    comms.GetPreviousTI: _constant(lambda: comms.PreviousTIResult(task_instance=None)),
    comms.GetPrevSuccessfulDagRun: _constant(comms.PrevSuccessfulDagRunResult),
    comms.GetTaskRescheduleStartDate: _constant(lambda: comms.TaskRescheduleStartDate(start_date=None)),
    comms.TriggerDagRun: _refuse(_NO_TRIGGER),
    comms.GetAssetByName: TaskComms._asset,
    comms.GetAssetByUri: TaskComms._asset,
    comms.GetAssetsByAlias: _constant(lambda: comms.AssetsByAliasResult(assets=[])),
    comms.GetAssetEventByAsset: _constant(lambda: comms.AssetEventsResult(asset_events=[])),
    comms.GetAssetEventByAssetAlias: _constant(lambda: comms.AssetEventsResult(asset_events=[])),
    comms.ValidateInletsAndOutlets: _constant(lambda: comms.InactiveAssetsResult(inactive_assets=[])),
    comms.GetAssetStateStoreByName: TaskComms._asset_store_value,
    comms.GetAssetStateStoreByUri: TaskComms._asset_store_value,
    comms.SetAssetStateStoreByName: _refuse(_NO_ASSET_STORE),
    comms.SetAssetStateStoreByUri: _refuse(_NO_ASSET_STORE),
    comms.DeleteAssetStateStoreByName: _refuse(_NO_ASSET_STORE),
    comms.DeleteAssetStateStoreByUri: _refuse(_NO_ASSET_STORE),
    comms.ClearAssetStateStoreByName: _refuse(_NO_ASSET_STORE),
    comms.ClearAssetStateStoreByUri: _refuse(_NO_ASSET_STORE),
    comms.GetTaskStateStore: TaskComms._get_stored,
    comms.SetTaskStateStore: TaskComms._set_stored,
    comms.DeleteTaskStateStore: TaskComms._delete_stored,
    comms.ClearTaskStateStore: TaskComms._clear_stored,
    comms.CreateHITLDetailPayload: _refuse(_NO_HUMAN),
    comms.UpdateHITLDetail: _refuse(_NO_HUMAN),
    comms.GetHITLDetailResponse: _refuse(_NO_HUMAN),
    comms.ResendLoggingFD: _refuse("the log is on descriptors 1 and 2 already"),
}
