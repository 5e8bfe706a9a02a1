"""Airflow's example DAGs are described as Airflow parses them, to the same digests wherever and however often that is done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from task_corpus import AIRFLOW, DAGS, FILES, REFUSED, TASKS, source
from task_rig import Answer, Warm

from vocabulary.manifest import DagEntry

SEEDS = ("1", "2", "3", "42")

# One fork per file: a file that defines a plugin would otherwise change what the next ones may use.
AIRFLOWS_OWN = """
import json, os, sys
from pathlib import Path
from airflow.dag_processing.dagbag import BundleDagBag
from airflow.serialization.serialized_objects import DagSerialization

def parse(path):
    bag = BundleDagBag(dag_folder=str(path), safe_mode=False, load_op_links=False, bundle_path=path.parent, bundle_name="b")
    assert not bag.import_errors, bag.import_errors
    try:
        return {
            dag_id: sorted(task["__var"]["task_id"] for task in DagSerialization.to_dict(dag)["dag"]["tasks"])
            for dag_id, dag in bag.dags.items()
        }
    except Exception:
        return {}

for path in json.load(sys.stdin):
    if os.fork() == 0:
        found = parse(Path(path))
        print("FOUND", json.dumps([path, found]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


@pytest.fixture(scope="module")
def described(describer: Warm) -> dict[str, Answer]:
    return describe_all(describer)


def describe_all(warm: Warm, variant: int = 0) -> dict[str, Answer]:
    return {name: warm.describe(path.name, path.read_bytes(), variant=variant) for name, path in FILES.items()}


def digests(described: dict[str, Answer]) -> dict[str, dict[tuple[str, str], str]]:
    return {
        name: {task: entry["digest"] for task, entry in answer.tasks.items()}
        for name, answer in described.items()
        if answer.kind == "described"
    }


def test_what_airflow_parses_is_described_and_the_rest_refused_with_its_reason(described: dict[str, Answer]) -> None:
    refused = {name: answer.fields for name, answer in described.items() if answer.kind != "described"}
    assert len(FILES) == 82
    assert sorted(refused) == sorted(REFUSED)
    for name, (rule, words) in REFUSED.items():
        assert (refused[name]["error"], refused[name]["rule"]) == ("invalid-archive", rule), name
        assert words in refused[name]["detail"], name
    accepted = [answer for answer in described.values() if answer.kind == "described"]
    assert sum(len(answer.fields["dags"]) for answer in accepted) == DAGS
    assert sum(len(answer.tasks) for answer in accepted) == TASKS


def test_the_same_dags_and_tasks_are_found_as_by_airflows_own_importer(
    described: dict[str, Answer], tmp_path_factory: Any
) -> None:
    home = str(tmp_path_factory.mktemp("airflow"))
    environment = {
        "PATH": os.environ["PATH"],
        "AIRFLOW_HOME": home,
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite://",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",  # with it Airflow registers the plugins of its examples
    }
    done = subprocess.run(
        [sys.executable, "-c", AIRFLOWS_OWN],
        input=json.dumps([str(path) for path in FILES.values()]),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = dict(json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("FOUND "))
    ours = {
        str(AIRFLOW / name): {
            dag["dag_id"]: [task["task_id"] for task in dag["tasks"]] for dag in answer.fields["dags"]
        }
        if answer.kind == "described"
        else {}
        for name, answer in described.items()
    }
    assert ours == theirs


def test_descriptions_have_the_manifests_form(described: dict[str, Answer]) -> None:
    for answer in described.values():
        for dag in answer.fields.get("dags", ()):
            tasks = [{key: value for key, value in task.items() if key != "fields"} for task in dag["tasks"]]
            assert DagEntry.from_json({**dag, "tasks": tasks}).to_json()["tasks"] == tasks


@pytest.mark.parametrize("seed", SEEDS)
def test_digests_are_equal_over_hash_seeds_clocks_and_homes(described: dict[str, Answer], seed: str) -> None:
    other = Warm("describe", environment={"PYTHONHASHSEED": seed})
    again = describe_all(other, variant=int(seed) % 2)
    assert other.close() == 0
    assert digests(again) == digests(described)


def test_a_changed_function_body_changes_the_digests(describer: Warm) -> None:
    name, data = source("tutorial_taskflow_api.py")
    changed = data.replace(b"total_order_value += value", b"total_order_value -= value")
    assert changed != data
    before, after = describer.describe(name, data).tasks, describer.describe(name, changed).tasks
    assert all(before[task]["fields"] == after[task]["fields"] for task in before)
    assert not {entry["digest"] for entry in before.values()} & {entry["digest"] for entry in after.values()}
