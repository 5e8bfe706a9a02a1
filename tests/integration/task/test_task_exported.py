"""What the real `airflow connections export` writes, in each of its formats, reaches a real task as Airflow itself reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from task_rig import Grant, Warm

from submit_api import importing
from tests.airflow_exporting import ATTRIBUTES, CONNECTIONS, FORMATS, export

DAG = f"""
from airflow.sdk import BaseHook, DAG, task
with DAG("d", schedule=None):
    @task
    def t(names):
        found = [BaseHook.get_connection(name) for name in names]
        return [{{**{{name: getattr(one, name) for name in {ATTRIBUTES}}}, "extra_dejson": one.extra_dejson,
                 "uri": one.get_uri()}} for one in found]
    t({[one["conn_id"] for one in CONNECTIONS]})
"""


Exported = tuple[Path, dict[str, dict[str, Any]]]
# What a URI has no place for, and how it writes what it has; Airflow's own reader of JSON takes an empty extra for none.
NOT_IN_A_URI = {"description", "extra", "uri"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("airflow")
    return folder, export(folder)


@pytest.mark.parametrize("ending", FORMATS)
def test_an_export_reaches_the_task_unchanged(runner: Warm, exported: Exported, ending: str) -> None:
    folder, expected = exported
    body = (folder / f"connections.{ending}").read_bytes()
    form = importing.format_of("application/octet-stream", None, body.decode())
    assert form == ending.rpartition(".")[2]
    stored = importing.read(body, form)
    assert stored.keys() == expected.keys() == {one["conn_id"] for one in CONNECTIONS}
    ran = runner.run("d.py", DAG.encode(), "d", "t", Grant(connections=stored))
    assert ran.state == "success", (ran.fields, ran.log[-3000:])
    for found in ran.xcom():
        theirs = expected[found["conn_id"]]
        if ending == "uri.env":
            ours = {key: found[key] or None for key in theirs.keys() - NOT_IN_A_URI}
            assert ours == {key: theirs[key] or None for key in theirs.keys() - NOT_IN_A_URI}
        else:
            assert found == {**theirs, "extra": theirs["extra"] or None}


def test_an_empty_password_is_not_none(exported: Exported) -> None:
    folder, expected = exported
    assert expected["empty_password"]["password"] == ""
    for ending in FORMATS:
        stored = importing.read((folder / f"connections.{ending}").read_bytes(), ending.rpartition(".")[2])
        assert '"password": ""' in stored["empty_password"] or stored["empty_password"] == "mysql://u:@h"
