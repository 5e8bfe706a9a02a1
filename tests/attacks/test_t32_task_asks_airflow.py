"""T32 task-asks-airflow: a task asks its supervisor for what Airflow's API would give any task: connections, variables, XComs
of others; or it writes in another's name, or speaks what is no message at all.

Seen to fail when weakened: a filter that answers everything; a kind without a rule that is answered; a map index that is not
compared.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.supervised import COORDINATOR, Api, Conversation, agent, configured, lines, supervise

from airflow.sdk.execution_time import comms  # isort: skip

NAMED = {"run_id": "r1", "task_id": "load", "key": "k"}
OTHERS = {"run_id": "r1", "task_id": "extract", "key": "k"}
ASKED: dict[str, Any] = {
    "a connection": comms.GetConnection(conn_id="warehouse"),
    "a variable": comms.GetVariable(key="v"),
    "the names of variables": comms.GetVariableKeys(prefix=None),
    "to write a variable": comms.PutVariable(key="v", value="1", description=None),
    "to delete a variable": comms.DeleteVariable(key="v"),
    "an XCom of another dag": comms.GetXCom(dag_id="others", **OTHERS),
    "how many XComs another dag has": comms.GetXComCount(dag_id="others", **OTHERS),
    "one of a sequence of another dag": comms.GetXComSequenceItem(dag_id="others", offset=0, **OTHERS),
    "a slice of another dag's": comms.GetXComSequenceSlice(dag_id="others", start=0, stop=9, step=1, **OTHERS),
    "to write another task's XCom": comms.SetXCom(dag_id="etl", value=1, **OTHERS),
    "to write another map index's XCom": comms.SetXCom(dag_id="etl", value=1, map_index=3, **NAMED),
    "to write another run's XCom": comms.SetXCom(dag_id="etl", value=1, **(NAMED | {"run_id": "r2"})),
    "to delete another task's XCom": comms.DeleteXCom(dag_id="etl", **OTHERS),
    "to change another task's state store": comms.ClearTaskStateStore(ti_id=uuid.uuid4()),
    "a log channel of its own": comms.ResendLoggingFD(),
}


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with configured(COORDINATOR, tmp_path, monkeypatch):
        yield


def succeed() -> comms.SucceedTask:
    return comms.SucceedTask(end_date="2026-01-31T00:00:01Z", task_outlets=[], outlet_events=[])


def asked_of(api: Api) -> list[str]:
    """What Airflow's API was asked, but for heartbeats."""
    calls = [path.rsplit("/")[-1] for _, path, _ in api.calls]
    return [call for call in calls if call != "heartbeat"]


@pytest.mark.parametrize("case", ASKED)
def test_it_is_refused_and_airflow_is_not_asked(case: str, tmp_path: Path) -> None:
    api, refused = Api(), []

    def script(talk: Conversation) -> None:
        task = talk.begin()
        talk.requests.sendall(task._make_frame(ASKED[case]).as_bytes())  # type: ignore[union-attr]
        frame = task._read_frame()
        refused.append((frame.body, frame.error))
        task.send(succeed())
        talk.end("success")

    with agent(tmp_path / "tasks.sock", script):
        assert supervise(api, tmp_path / "log") == 0
    ((body, error),) = refused
    assert body is None and error["error"] == "PERMISSION_DENIED"
    assert asked_of(api) == ["run", "state"]
    assert any(line["event"].startswith("dagseal: refused: ") for line in lines(tmp_path / "log"))


@pytest.mark.parametrize("body", [{"type": "ReadAnything"}, {"type": "GetConnection"}, {}, None, {"type": ["GetXCom"]}])
def test_what_is_no_message_is_not_answered_and_ends_nothing(body: Any, tmp_path: Path) -> None:
    api = Api()

    def script(talk: Conversation) -> None:
        task = talk.begin()
        data = msgspec.msgpack.encode([1, body, None])
        talk.requests.sendall(len(data).to_bytes(4, "big") + data)  # type: ignore[union-attr]
        task.send(succeed())
        talk.end("success")

    with agent(tmp_path / "tasks.sock", script):
        assert supervise(api, tmp_path / "log") == 0
    assert asked_of(api) == ["run", "state"]
