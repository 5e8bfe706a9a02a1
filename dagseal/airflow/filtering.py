"""Which request of a task its supervisor answers.

A task speaks Airflow's own protocol to the supervisor, which asks Airflow's API with the token of that task; and Airflow's API
lets any task read any connection, variable and XCom. So each kind of message has one rule here. A kind that is not in the
table, of a newer Airflow say, is refused.

Connections and variables come from dagseal's grant alone, over the task's pipe. XComs are read of the task's own dag and of
those that the manifest declares (`xcom_dags`), and written only by the task they belong to.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Rule(Enum):
    """How a kind of message is judged."""

    ANSWERED = "as in plain Airflow"
    CONNECTION = "never: connections come from the grant"
    VARIABLE = "never: variables come from the grant"
    LOG_CHANNEL = "never: the task's log goes through the launcher"
    NOT_A_TASKS = "never: only triggers ask this"
    READS_XCOM = "of its own dag, and of the dags that are declared"
    WRITES_XCOM = "of the task itself"
    OWN_INSTANCE = "of the task instance itself"


RULES: dict[str, Rule] = {
    "AwaitInputTask": Rule.ANSWERED,
    "ClearAssetStateStoreByName": Rule.ANSWERED,
    "ClearAssetStateStoreByUri": Rule.ANSWERED,
    "ClearTaskStateStore": Rule.OWN_INSTANCE,
    "CreateHITLDetailPayload": Rule.OWN_INSTANCE,
    "DeferTask": Rule.ANSWERED,
    "DeleteAssetStateStoreByName": Rule.ANSWERED,
    "DeleteAssetStateStoreByUri": Rule.ANSWERED,
    "DeleteTaskStateStore": Rule.OWN_INSTANCE,
    "DeleteVariable": Rule.VARIABLE,
    "DeleteXCom": Rule.WRITES_XCOM,
    "GetAssetByName": Rule.ANSWERED,
    "GetAssetByUri": Rule.ANSWERED,
    "GetAssetEventByAsset": Rule.ANSWERED,
    "GetAssetEventByAssetAlias": Rule.ANSWERED,
    "GetAssetStateStoreByName": Rule.ANSWERED,
    "GetAssetStateStoreByUri": Rule.ANSWERED,
    "GetAssetsByAlias": Rule.ANSWERED,
    "GetConnection": Rule.CONNECTION,
    "GetDRCount": Rule.ANSWERED,
    "GetDag": Rule.ANSWERED,
    "GetDagRun": Rule.ANSWERED,
    "GetDagRunState": Rule.ANSWERED,
    "GetHITLDetailResponse": Rule.NOT_A_TASKS,
    "GetPrevSuccessfulDagRun": Rule.OWN_INSTANCE,
    "GetPreviousDagRun": Rule.ANSWERED,
    "GetPreviousTI": Rule.ANSWERED,
    "GetTICount": Rule.ANSWERED,
    "GetTaskBreadcrumbs": Rule.ANSWERED,
    "GetTaskRescheduleStartDate": Rule.OWN_INSTANCE,
    "GetTaskStateStore": Rule.OWN_INSTANCE,
    "GetTaskStates": Rule.ANSWERED,
    "GetVariable": Rule.VARIABLE,
    "GetVariableKeys": Rule.VARIABLE,
    "GetXCom": Rule.READS_XCOM,
    "GetXComCount": Rule.READS_XCOM,
    "GetXComSequenceItem": Rule.READS_XCOM,
    "GetXComSequenceSlice": Rule.READS_XCOM,
    "MaskSecret": Rule.ANSWERED,
    "PutVariable": Rule.VARIABLE,
    "RescheduleTask": Rule.ANSWERED,
    "ResendLoggingFD": Rule.LOG_CHANNEL,
    "RetryTask": Rule.ANSWERED,
    "SetAssetStateStoreByName": Rule.ANSWERED,
    "SetAssetStateStoreByUri": Rule.ANSWERED,
    "SetRenderedFields": Rule.ANSWERED,
    "SetRenderedMapIndex": Rule.ANSWERED,
    "SetTaskStateStore": Rule.OWN_INSTANCE,
    "SetXCom": Rule.WRITES_XCOM,
    "SkipDownstreamTasks": Rule.ANSWERED,
    "SucceedTask": Rule.ANSWERED,
    "TaskState": Rule.ANSWERED,
    "TriggerDagRun": Rule.ANSWERED,
    "UpdateHITLDetail": Rule.NOT_A_TASKS,
    "ValidateInletsAndOutlets": Rule.OWN_INSTANCE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """The task whose requests are judged, as Airflow's workload names it, and whose XComs it may read besides."""

    id: str
    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    xcom_dags: Set[str]


def refusal(message: Any, asker: Asker) -> str:
    """Why this message of `asker`'s is not answered, and what to do; empty: it is answered."""
    kind = type(message).__name__
    match RULES.get(kind):
        case Rule.ANSWERED:
            return ""
        case Rule.CONNECTION:
            return (
                f"connection {_shown(message, 'conn_id')} was not granted to this task: dagseal gives a task its connections "
                "over a pipe, never through Airflow's API. Its owner grants it: dagseal connection grant"
            )
        case Rule.VARIABLE:
            return (
                f"{kind} of variable {_shown(message, 'key', 'prefix')}: a task of dagseal reads only variables that were "
                "granted to it, and writes none. Their owner grants one: dagseal variable grant"
            )
        case Rule.LOG_CHANNEL:
            return "a task of dagseal's has its log channel from the launcher and gets no other"
        case Rule.READS_XCOM:
            if message.dag_id == asker.dag_id or message.dag_id in asker.xcom_dags:
                return ""
            return (
                f"XComs of dag {message.dag_id!r} are not this task's to read: declare it with "
                f"executor_config={{'dagseal': {{'xcom_dags': [{message.dag_id!r}]}}}}, and push the archive again"
            )
        case Rule.WRITES_XCOM:
            index = -1 if message.map_index is None else message.map_index
            named = (message.dag_id, message.run_id, message.task_id, index)
            if named == (asker.dag_id, asker.run_id, asker.task_id, asker.map_index):
                return ""
            return f"{kind} for {'/'.join(str(part) for part in named)}: a task writes its own XComs and no other's"
        case Rule.OWN_INSTANCE:
            if str(getattr(message, "ti_id", "")) == asker.id:
                return ""
            return f"{kind} is answered for the task instance that asks, and for no other"
        case _:
            return f"{kind} is not part of what a task of dagseal's may ask its supervisor"


def _shown(message: Any, *keys: str) -> str:
    return repr(next((getattr(message, key) for key in keys if getattr(message, key, None)), ""))[:200]
