"""`dagseal doctor --airflow` on a real Airflow's configuration and database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from tests.airflow_rig import ROOT, Agent, Airflow

PLAIN = """
[core]
load_examples = True
[dagseal]
enforce = false
"""


def doctor(airflow: Airflow, *words: str, component: str = "", **more: str) -> tuple[int, str, str]:
    only = ["--component", component] if component else []
    done = subprocess.run(
        [sys.executable, "-m", "dagseal", *words, "doctor", "--airflow", *only],
        env={**airflow.environment, "HOME": str(airflow.home), **more},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert "Traceback" not in done.stderr, done.stderr[-4000:]
    return done.returncode, done.stdout, done.stderr


def states(text: str) -> dict[str, Any]:
    return {row["check"]: row for row in json.loads(text)}


def test_a_plain_airflow_is_told_the_lines_and_the_lines_are_enough(airflow: Airflow, agent: Agent) -> None:
    for name in ("AIRFLOW__CORE__LOAD_EXAMPLES", "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"):
        del airflow.environment[name]
    database = airflow.environment.pop("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN")
    config = airflow.home / "airflow.cfg"
    config.write_text(f"[database]\nsql_alchemy_conn = {database}\n{PLAIN}")
    config.chmod(0o640)
    airflow.run("""
from airflow.models import Connection, Variable
from airflow.utils.session import create_session
with create_session() as session:
    session.add(Connection(conn_id="warehouse", conn_type="http", password="hidden-word"))
""")
    code, said, _ = doctor(airflow)
    assert code == 1 and "hidden-word" not in said
    assert "FAILED enforce: NOT ENFORCED" in said and "warehouse" in said
    added = said.partition("To be in airflow.cfg:")[2]

    sections: dict[str, list[str]] = {"database": [f"sql_alchemy_conn = {database}"]}
    for line in added.strip().splitlines():
        if line.startswith("["):
            section = line[1:-1]
        else:
            sections.setdefault(section, []).append(line)
    config.write_text("".join(f"[{name}]\n" + "\n".join(found) + "\n" for name, found in sections.items()))
    airflow.run("""
from airflow.models import Connection
from airflow.utils.session import create_session
with create_session() as session:
    session.query(Connection).delete()
""")
    found = states(doctor(airflow, "-o", "json")[1])
    assert {name for name, row in found.items() if row["state"] == "failed"} == {
        "tasks socket",
        "launcher socket",
        "server",
    }
    assert found["releases socket"]["state"] == "ok" and found["dag processor"]["state"] == "warning"
    assert "server = " in found["server"]["detail"]
    code, said, _ = doctor(airflow, "-o", "json", component="triggerer")
    assert code == 0 and not states(said).keys() & {"tasks socket", "releases socket", "launcher socket", "server"}
    code, _, told = doctor(airflow, component="workers")
    assert code == 2 and "--component is one of scheduler, worker, dag-processor, triggerer, api-server" in told


def test_secrets_in_the_environment_are_named_and_not_shown(airflow: Airflow, agent: Agent) -> None:
    code, said, _ = doctor(airflow, "-o", "json", AIRFLOW__CORE__FERNET_KEY="a-key-of-theirs")
    row = states(said)["environment"]
    assert code == 1 and row["state"] == "failed" and "AIRFLOW__CORE__FERNET_KEY" in row["detail"]
    assert "a-key-of-theirs" not in said
    assert os.environ.get("AIRFLOW__CORE__FERNET_KEY") is None
