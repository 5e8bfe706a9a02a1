"""What a caller of `dagseal launch` meets: exit codes, users, limits, secrets, XComs; and what nothing here may do."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator

import pytest

from integrity.digests import Digest
from tests.live import Live, running

DAG = """
import logging, os, pwd, sys
from airflow.sdk import DAG, BaseHook, Variable, task
from airflow.providers.standard.operators.bash import BashOperator

with DAG("launching", schedule=None):

    @task
    def fine():
        print("I am", pwd.getpwuid(os.getuid()).pw_name)
        return {"price": 1.5, "name": "ü"}

    @task
    def later(found):
        print("FOUND", found)

    @task
    def broken():
        raise ValueError("broken on purpose")

    @task(retries=2)
    def retried():
        raise ValueError("again")

    @task
    def talkative():
        for line in range(100_000):
            print("x" * 99)

    @task
    def legacy():
        print("legacy host", BaseHook.get_connection("legacy").host)

    @task
    def other():
        BaseHook.get_connection("other")

    @task
    def threefold():
        print("to stdout")
        print("to stderr", file=sys.stderr)
        logging.getLogger("my.own").warning("to the log: %s", Variable.get("colour", default="none"))

    @task
    def settings():
        print("SETTING", Variable.get("colour"))

    later(fine()); broken(); retried(); talkative(); legacy(); other(); settings(); threefold()
    BashOperator(task_id="as_root", bash_command="id", run_as_user="root")
    BashOperator(task_id="as_nobody_there", bash_command="id", run_as_user="nobody-there")
"""


@pytest.fixture(scope="module")
def strict() -> Iterator[Live]:
    """A stack with a small log and two connections in the launcher's environment, one of which is passed on."""
    environment = {"AIRFLOW_CONN_LEGACY": "http://legacy.example.com", "AIRFLOW_CONN_OTHER": "http://other.example.com"}
    toml = '[limits]\nmax_log_bytes = 100000\n[environment]\npass = ["AIRFLOW_CONN_LEGACY"]\n'
    with running(launcher_environment=environment, more_launcher_toml=toml) as live:
        assert live.push("launching.py", DAG).status == 201
        for user in ("root", "nobody-there"):
            rule = {
                "subject_kind": "principal",
                "subject": "admin",
                "dag_glob": "*",
                "unix_user": user,
                "queue_glob": "*",
            }
            assert live.http("POST", "/v1/impersonation-rules", rule).status == 201
        yield live


def follow(live: Live, task: str, run_id: str = "r", *more: str) -> tuple[int, str]:
    done = live.cli("launch", "launching", task, "--run-id", run_id, "--follow", *more)
    return done.returncode, done.stdout + done.stderr


def test_success_is_0_and_a_later_task_of_the_run_finds_the_xcom(strict: Live) -> None:
    code, shown = follow(strict, "fine", "xcoms")
    assert (code, f"I am {strict.user}" in shown) == (0, True), shown
    code, shown = follow(strict, "later", "xcoms")
    assert (code, "FOUND {'price': 1.5, 'name': 'ü'}" in shown) == (0, True), shown
    code, shown = follow(strict, "later", "another-run")
    assert (code, "FOUND None" in shown) == (0, True), shown


def test_a_failed_task_is_8_with_its_traceback(strict: Live) -> None:
    code, shown = follow(strict, "broken")
    assert code == 8
    assert 'File "/dagseal-archive/launching.py", line' in shown
    assert "ValueError: broken on purpose" in shown


def test_retries_left_is_up_for_retry(strict: Live) -> None:
    assert strict.launch("launching", "retried", "first")["state"] == "up_for_retry"
    assert strict.launch("launching", "retried", "first", try_number=3)["state"] == "failed"


def test_the_same_try_twice_is_6(strict: Live) -> None:
    assert follow(strict, "fine", "twice")[0] == 0
    code, shown = follow(strict, "fine", "twice")
    assert (code, "launching.fine" in shown) == (6, True), shown


def test_the_log_is_cut_at_its_limit_and_says_so(strict: Live) -> None:
    ended = strict.launch("launching", "talkative", "r")
    assert (ended["state"], ended["log_truncated"]) == ("success", True)
    # The limit is on the records, which are cut anywhere; as text they are shorter.
    assert 99_000 < ended["log_bytes"] < 100_200
    log = strict.log(ended["id"])
    assert 80_000 < len(log) < ended["log_bytes"]
    assert log.endswith("[dagseal] the log is cut here: it is over the limit of 100000 bytes\n")


def test_stderr_goes_to_stderr_and_json_is_what_was_signed_for(strict: Live) -> None:
    done = strict.cli("launch", "launching", "threefold", "--run-id", "three", "--follow", "-q")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "to stderr\n"
    # Of two pipes, the one that was written first is not always read first.
    logged, printed = sorted(line for line in done.stdout.splitlines() if "to " in line)
    assert printed == "to stdout"
    assert re.fullmatch(r"\[20.*Z\] \{WARNING\} my\.own - to the log: .+", logged), logged
    (found,) = strict.http("GET", "/v1/launches?limit=1").json["launches"]
    bare = strict.cli("logs", found["id"], "-o", "json").stdout
    assert str(Digest.of(bare.encode())) == found["log_digest"]
    records = [json.loads(line) for line in bare.splitlines()]
    assert {one["source"] for one in records} == {"stdout", "stderr", "log"}
    assert all(found["created_at"] < one["at"] < found["ended_at"] for one in records)
    structured = "".join(one["text"] for one in records if one["source"] == "log")
    assert "my.own" in [json.loads(line)["logger"] for line in structured.splitlines()]
    assert "to stderr" in strict.log(found["id"]) and '"source"' not in strict.log(found["id"])


def test_a_connection_of_the_launchers_environment_only_when_the_operator_named_it(strict: Live) -> None:
    code, shown = follow(strict, "legacy")
    assert (code, "legacy host legacy.example.com" in shown) == (0, True), shown
    code, shown = follow(strict, "other")
    assert code == 8
    assert "connection 'other' was not granted to this task" in shown
    assert "other.example.com" not in shown


def test_a_variable_arrives_when_it_is_granted(strict: Live) -> None:
    code, shown = follow(strict, "settings", "before")
    assert (code, "variable 'colour' was not granted" in shown) == (8, True), shown
    assert strict.cli("variable", "set", "colour", stdin="teal-and-orange").returncode == 0
    assert strict.cli("variable", "grant", "colour", "--to", "admin").returncode == 0
    code, shown = follow(strict, "settings", "after")
    assert code == 0
    assert "SETTING ***" in shown, "a variable's value is masked in the log"


def test_run_as_user_of_the_dag_is_known_before_it_is_imported_and_refused_by_name(strict: Live) -> None:
    asked = strict.http("POST", "/v1/launches", {"dag_id": "launching", "task_id": "as_root", "run_id": "r"})
    found = strict.wait(asked.json["id"]) if asked.status == 201 else None
    code, shown = follow(strict, "as_root", "cli")
    assert code == 7 and re.search(r"root|banned", shown), shown
    assert found is None or (found["state"], found["log_bytes"]) == ("refused", 0)
    code, shown = follow(strict, "as_nobody_there", "cli")
    assert code == 7, shown
    if os.geteuid() == 0:
        assert "unix user nobody-there does not exist on this host" in shown


def test_what_is_not_there_is_5(strict: Live) -> None:
    code, shown = follow(strict, "no_such_task")
    assert (code, "no task 'no_such_task'" in shown) == (5, True), shown
    code, shown = follow(strict, "fine", "r9", "--release", "9")
    assert (code, "9" in shown) == (5, True), shown
