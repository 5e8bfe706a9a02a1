"""`dagseal import-dags` of a real folder to real services: API, launcher and agent as processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dagseal.footing import free_port
from dagseal.quickstart import default_user
from dagseal.stack import Stack

DAG = """
from airflow.sdk import dag, task
{more}

@dag(dag_id="{dag_id}", schedule=None, default_args={{"owner": "{owner}"}})
def flow():
    @task
    def one():
        return 1

    one()


flow()
"""
SHARED = "from shared.words import HELLO"


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    found = Path(tempfile.mkdtemp(prefix="dagseal-import-"))
    found.chmod(0o755)
    yield found
    shutil.rmtree(found, ignore_errors=True)


@pytest.fixture(scope="module")
def stack(base: Path) -> Iterator[Stack]:
    found = Stack(folder=base / "stack", port=free_port(), task_user=default_user())
    try:
        found.prepare()
        found.start()
        (base / "airflow").mkdir()
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def folder(base: Path) -> Path:
    top = base / "dags"
    files = {
        "alone.py": DAG.format(dag_id="alone", owner="ada", more=""),
        "sales.py": DAG.format(dag_id="sales", owner="ada", more=SHARED),
        "team/etl.py": DAG.format(dag_id="etl", owner="grace", more=SHARED),
        "shared/__init__.py": "",
        "shared/words.py": "HELLO = 'hi'\n",
        "lookalike.py": "# says dag and airflow, and is none\n",
        "bad.py": DAG.format(dag_id="bad", owner="ada", more="import nothing_of_that_name"),
        "old/gone.py": DAG.format(dag_id="gone", owner="ada", more=""),
        ".airflowignore": "old/\n",
    }
    for name, text in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    return top


def dagseal(stack: Stack, base: Path, *words: str) -> tuple[int, Any, str]:
    done = subprocess.run(
        [sys.executable, "-m", "dagseal", "-o", "json", *words],
        env=stack.environment(HOME=str(base), AIRFLOW_HOME=str(base / "airflow"), PATH=os.environ["PATH"]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


def states(rows: list[dict[str, Any]]) -> dict[str, tuple[str, str, str]]:
    return {row["source"]: (row["archive"], row["owner"], row["state"]) for row in rows}


def test_a_folder_is_recorded_once_and_the_rest_is_reported(stack: Stack, base: Path, folder: Path) -> None:
    words = ("import-dags", str(folder), "--owner-from", "default-args", "--owner-map", "ada=admin")
    code, rows, _ = dagseal(stack, base, *words, "--plan")
    planned = states(rows)
    assert planned == {
        "alone.py": ("alone.py", "admin", "planned"),
        "bad.py": ("bad.py", "admin", "planned"),
        "lookalike.py": ("", "", "failed"),
        "sales.py": ("sales.zip", "admin", "planned"),
        "team/etl.py": ("team_etl.zip", "grace", "planned"),
    }
    assert code == 2  # the lookalike names no owner
    assert next(row for row in rows if row["source"] == "sales.py")["files"] == [
        "sales.py",
        "shared/__init__.py",
        "shared/words.py",
    ]
    assert dagseal(stack, base, "list")[1] == []

    code, rows, said = dagseal(stack, base, *words)
    found = states(rows)
    assert found["alone.py"][2] == found["sales.py"][2] == "recorded"
    assert found["bad.py"][2] == "failed" and "nothing_of_that_name" in next(
        row["detail"] for row in rows if row["source"] == "bad.py"
    )
    assert code == 7 and "were not recorded" in said

    code, rows, _ = dagseal(stack, base, "import-dags", str(folder), "--owner", "admin")
    again = states(rows)
    assert again["alone.py"][2] == again["sales.py"][2] == "unchanged"
    assert again["lookalike.py"][2] == "no dag"
    assert again["team/etl.py"][2] in ("recorded", "unchanged")
    assert code == 7
    listed = {row["name"]: row["owner"] for row in dagseal(stack, base, "list")[1]}
    assert listed == {"alone.py": "admin", "sales.zip": "admin", "team_etl.zip": "admin"}
