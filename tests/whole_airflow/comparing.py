"""Every example DAG run once, and what each ended in: what plain Airflow and ours are compared by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.whole_airflow.examples import EXAMPLES, LOGICAL_DATE, Example
from tests.whole_airflow.public import PublicApi, RunEnd
from tests.whole_airflow.ways import Rig, note, source

RUN_ID = "e2e"
OWN = ("own_retries", "own_reschedules", "own_defers", "own_time_limit", "own_rules", "own_callbacks", "own_templates")
_SECONDS = 420.0
_SKIPPED = "skipmixin_key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`woken` are the states of the runs that an asset of it started, one for each DAG."""

    end: RunEnd
    woken: tuple[tuple[str, str], ...] = ()


def run_all(api: PublicApi) -> dict[str, Outcome]:
    """By DAG id."""
    names = {example.dag_id for example in EXAMPLES}
    api.until(lambda: names <= api.dags(), f"the DAGs {sorted(names - api.dags())}", 120)
    for example in EXAMPLES:
        for dag_id in (example.dag_id, *example.wakes):
            api.switch_on(dag_id)
    for example in EXAMPLES:
        api.trigger(example.dag_id, RUN_ID, example.conf, logical_date=LOGICAL_DATE)
    left = api.wait_all(((example.dag_id, RUN_ID) for example in EXAMPLES), seconds=_SECONDS)
    assert not left, f"not ended after {_SECONDS:.0f} s: {sorted(left)}"
    return {example.dag_id: _outcome(api, example) for example in EXAMPLES}


def run_own(rig: Rig) -> dict[str, RunEnd]:
    """The same for our own DAGs, by DAG id; with what their callbacks noted as XComs of nobody."""
    notes = {name: note(rig, name) for name in ("on-kill", "told", "looks")}
    rig.put("own_ends", source(rig, "own_ends"))
    for dag_id in OWN:
        rig.api.switch_on(dag_id)
        rig.api.trigger(dag_id, RUN_ID, logical_date=LOGICAL_DATE)
    left = rig.api.wait_all(((dag_id, RUN_ID) for dag_id in OWN), seconds=_SECONDS)
    assert not left, f"not ended after {_SECONDS:.0f} s: {sorted(left)}"
    noted = {("", -1, name): path.read_text() for name, path in notes.items()}
    ends = {dag_id: rig.api.end(dag_id, RUN_ID) for dag_id in OWN}
    return ends | {"notes": RunEnd(state="", tasks=(), xcoms=noted)}


def comparable(example: Example, outcome: Outcome) -> dict[str, Any]:
    """What must be the same; XComs by key alone where the values are another ones each time, and whom a task skipped in any
    order: Airflow lists a set."""
    xcoms = {
        (task_id, map_index, key): {how: sorted(names) for how, names in value.items()} if key == _SKIPPED else value
        for (task_id, map_index, key), value in outcome.end.xcoms.items()
    }
    return {
        "state": outcome.end.state,
        "tasks": outcome.end.tasks,
        "xcoms": sorted(xcoms) if example.by_key else xcoms,
        "woken": outcome.woken,
    }


def _outcome(api: PublicApi, example: Example) -> Outcome:
    woken = []
    for dag_id in example.wakes:
        api.until(
            lambda dag_id=dag_id: _woken(api, dag_id) in ("success", "failed"), f"{dag_id} to be woken and to end"
        )
        woken.append((dag_id, _woken(api, dag_id)))
    return Outcome(end=api.end(example.dag_id, RUN_ID), woken=tuple(woken))


def _woken(api: PublicApi, dag_id: str) -> str:
    """The state of the first run that an asset started."""
    runs = api.rows(f"dags/{dag_id}/dagRuns", "dag_runs", run_type="asset_triggered", order_by="id")
    return str(runs[0]["state"]) if runs else ""
