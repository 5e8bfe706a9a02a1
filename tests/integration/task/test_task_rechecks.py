"""The digest that the scheduler takes of what Airflow stored is the manifest's, for every task of Airflow's examples.

The launcher's `serialise` makes the document, Airflow's own code writes it into its database, and from there it is read again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from task_corpus import FILES, TASKS
from task_rig import Task, Warm, _last, zipped

from integrity.digests import Digest

STORING = """
import json, sys
from airflow import settings
from airflow.models.dagbundle import DagBundleModel
from airflow.models.dag import DagModel
from airflow.models.dag_version import DagVersion
from airflow.models.serialized_dag import SerializedDagModel
from airflow.serialization.serialized_objects import LazyDeserializedDAG
from airflow.utils.session import create_session
from sqlalchemy import select
from dagseal.airflow import recheck
from dagseal.airflow.recheck import Recheck
from integrity.digests import Digest

found = []
with create_session() as session:
    session.add(DagBundleModel(name="dagseal"))
for archive, digest, dag_id, data in json.load(sys.stdin):
    with create_session() as session:
        session.add(DagModel(dag_id=dag_id, bundle_name="dagseal", fileloc=archive, relative_fileloc=archive))
    with create_session() as session:
        document = json.loads(data)
        document["dag"]["fileloc"] = f"{sys.argv[1]}/{document['dag']['fileloc']}"  # where Airflow reads the source to show it
        dag = LazyDeserializedDAG(data=document)
        SerializedDagModel.write_dag(dag, "dagseal", "ab" * 64, session=session)
    with create_session() as session:
        version = str(session.scalar(select(DagVersion.id).where(DagVersion.dag_id == dag_id)))
    asked = Recheck(recheck.stored, lambda set_hex: {archive: Digest.parse(digest)})
    for task_id in recheck.tasks(recheck.stored(version), dag_id):
        one = asked.digest(dag_version=version, path=archive + "/x.py", dag_id=dag_id, task_id=task_id, set_hex="s")
        found.append([archive, dag_id, task_id, str(one)])
print("FOUND", json.dumps(found))
"""


def stored(
    archives: dict[str, bytes], describer: Warm, home: Path
) -> tuple[set[tuple[str, ...]], set[tuple[str, ...]]]:
    """What the manifest would say, and what is read of Airflow's database."""
    said, documents = set(), []
    for name, data in archives.items():
        answer = describer.describe(name, data)
        if answer.kind != "described":
            continue
        said |= {(name, *task, entry["digest"]) for task, entry in answer.tasks.items()}
        task = Task(describer)
        task.ask(data, job="serialise", name=name, digest=str(Digest.of(data)), members=None)
        documents += [[name, str(Digest.of(data)), dag["dag_id"], dag["data"]] for dag in _last(task).fields["dags"]]
    environment: dict[str, Any] = {
        "PATH": os.environ["PATH"],
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__COMPRESS_SERIALIZED_DAGS": "False",
    }
    for name, data in archives.items():
        (home / name).write_bytes(data)
    for command in ([sys.executable, "-m", "airflow", "db", "migrate"], [sys.executable, "-c", STORING, str(home)]):
        done = subprocess.run(
            command,
            input=json.dumps(documents),
            env=environment,
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    return said, {tuple(one) for one in json.loads(line.removeprefix("FOUND "))}


@pytest.mark.timeout(280)
def test_every_task_of_airflows_examples(describer: Warm, tmp_path: Path) -> None:
    said, found = stored({path.name: path.read_bytes() for path in FILES.values()}, describer, tmp_path)
    assert len({path.name for path in FILES.values()} & {name for name, *_ in said}) == 64
    assert len(said) == TASKS
    assert found == said


ZIPPED = """
import pathlib
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG
with DAG("zipped", schedule=None):
    BashOperator(task_id="t", bash_command=f"cat {pathlib.Path(__file__).parent / 'sql' / 'a.sql'}", env={"1.5": "x"})
"""


@pytest.mark.timeout(280)
def test_a_task_that_names_its_own_place_in_a_zip(describer: Warm, tmp_path: Path) -> None:
    archive = zipped({"z.py": ZIPPED, "sql/a.sql": "select 1"})
    said, found = stored({"pack.zip": archive}, describer, tmp_path)
    assert found == said and len(found) == 1
