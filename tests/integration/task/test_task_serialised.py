"""What Airflow's dag processor is given: Airflow's own JSON of each dag, and nothing of the process that made it."""

from __future__ import annotations

import json

from task_rig import Answer, Warm, zipped

DAG = b"""
import datetime
from airflow.sdk import DAG, Variable, task
from airflow.timetables.trigger import CronTriggerTimetable
%s
for name in ("b", "a"):
    with DAG(name, schedule=CronTriggerTimetable("0 3 * * *", timezone="UTC"), start_date=datetime.datetime(2026, 1, 1)):
        @task(retries=3)
        def one(): pass
        @task
        def two(x): pass
        two.expand(x=[1, 2]) << one()
"""


def serialise(describer: Warm, name: str, data: bytes, task_check: str = "task") -> Answer:
    return describer.look("serialise", name, data, task_check=task_check)


def test_every_dag_whole_and_as_airflow_reads_it(describer: Warm) -> None:
    answer = serialise(describer, "d.py", DAG % b"")
    assert answer.kind == "serialised", answer
    assert [(dag["dag_id"], dag["member"]) for dag in answer.fields["dags"]] == [("a", "d.py"), ("b", "d.py")]
    assert answer.fields["airflow_version"] == describer.airflow_version
    document = json.loads(answer.fields["dags"][0]["data"])
    assert [document["dag"][key] for key in ("dag_id", "fileloc", "relative_fileloc")] == ["a", "d.py", "d.py"]
    tasks = {one["__var"]["task_id"]: one["__var"] for one in document["dag"]["tasks"]}
    assert (tasks["one"]["retries"], tasks["two"]["_is_mapped"]) == (3, True)
    assert "CronTriggerTimetable" in json.dumps(document["dag"]["timetable"])
    assert not [word for word in ("/nonexistent", "/proc/", "memfd") if word in answer.fields["dags"][0]["data"]]


def test_a_zips_dags_say_their_member(describer: Warm) -> None:
    answer = serialise(describer, "pack.zip", zipped({"sub.py": DAG % b"", "other.py": b"x = 1\n"}))
    assert [dag["member"] for dag in answer.fields["dags"]] == ["sub.py", "sub.py"], answer
    document = json.loads(answer.fields["dags"][1]["data"])
    assert (document["dag"]["fileloc"], document["dag"]["relative_fileloc"]) == ("pack.zip/sub.py", "pack.zip/sub.py")


def test_what_a_description_refuses_is_refused(describer: Warm) -> None:
    assert serialise(describer, "d.py", DAG % b"1/0").fields["rule"] == "import-error"
    read = DAG % b'Variable.get("x", default=1)'
    assert serialise(describer, "d.py", read).fields["rule"] == "reads-variable"
    assert serialise(describer, "d.py", read, "archive").kind == "serialised"


def test_several_mebibytes_fit_and_more_are_refused(describer: Warm) -> None:
    def documented(count: int) -> bytes:
        return DAG.replace(b'timezone="UTC"),', b'timezone="UTC"), doc_md="\\"" * %d,' % count) % b""

    answer = serialise(describer, "d.py", documented(1 << 20))
    assert answer.kind == "serialised", answer
    assert len(answer.fields["dags"][0]["data"]) > 2 << 20
    assert serialise(describer, "d.py", documented(2 << 20)).fields["rule"] == "serialised-too-large"


def test_a_process_that_runs_tasks_serialises_nothing(runner: Warm) -> None:
    data = DAG % b""
    answer = runner.look("serialise", "d.py", data, task_check="task")
    assert answer.kind == "eof", answer
