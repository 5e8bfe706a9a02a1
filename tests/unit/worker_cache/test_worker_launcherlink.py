"""What a launcher's `serialised` may hold: data of the dags that it names, and nothing that is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from integrity.errors import MalformedError
from integrity.fields import Fields
from worker_cache.launcher_link import SerialisedDag, read_serialised


def dag(dag_id: str = "a", **changes: Any) -> dict[str, Any]:
    data = json.dumps({"__version": 3, "dag": {"dag_id": dag_id, "start_date": 0.5}})
    return {"dag_id": dag_id, "member": "d.py", "data": data, **changes}


def read(*dags: Any, **changes: Any) -> tuple[SerialisedDag, ...]:
    return read_serialised(Fields({"airflow_version": "3.3.2", "dags": list(dags), **changes}, "frame")).dags


def test_what_is_well_formed_is_read() -> None:
    assert read() == ()
    assert [one.dag_id for one in read(dag("a"), dag("b"))] == ["a", "b"]


@pytest.mark.parametrize(
    "dags",
    [
        [dag("b"), dag("a")],
        [dag("a"), dag("a")],
        [dag(data="{")],
        [dag(data="[" * 100_000)],
        [dag(data="[]")],
        [dag(data='{"dag": []}')],
        [dag(data=dag("b")["data"])],
        [dag(data={"dag": {"dag_id": "a"}})],
        [dag(member="x" * 1025)],
        [dag(more=1)],
        [dag("no/name")],
        ["a"],
    ],
)
def test_what_is_not_is_refused(dags: list[Any]) -> None:
    with pytest.raises(MalformedError):
        read(*dags)
