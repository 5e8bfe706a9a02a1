"""`dagseal dag-processor` with a real Airflow: what is in its database, and what was imported by whom."""

from __future__ import annotations

import io
import json
import shutil
import signal
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.airflow_rig import BUNDLE, Agent, Airflow, Parser, until

DAG = """
import os
from datetime import datetime
from airflow.sdk import DAG
from airflow.providers.standard.operators.empty import EmptyOperator

with DAG({dag_id!r}, schedule="@daily", start_date=datetime(2026, 1, 1), catchup=False, tags=["{pid}"]):
    EmptyOperator(task_id="{task}")
with open({seen!r}, "a") as file:
    file.write(f"{{os.getpid()}} {{os.getppid()}}\\n")
"""


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    return tmp_path / "imported"


def dag(dag_id: str, seen: Path, task: str = "one") -> str:
    return DAG.format(dag_id=dag_id, seen=str(seen), task=task, pid="x")


def zipped(**members: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for name, text in members.items():
            file.writestr(name.replace("__", "."), text)
    return data.getvalue()


class Processor:
    def __init__(self, airflow: Airflow, log: Path, *words: str, **more: str) -> None:
        self.log = log
        self.process = airflow.processor(log, *words, **more)

    def said(self, *words: str) -> bool:
        text = self.log.read_text(errors="replace")
        return all(word in text for word in words)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture
def start(airflow: Airflow, tmp_path: Path) -> Any:
    started: list[Processor] = []

    def begin(*words: str, **more: str) -> Processor:
        started.append(Processor(airflow, tmp_path / f"processor{len(started)}.log", *words, **more))
        return started[-1]

    yield begin
    for one in started:
        one.process.kill()
        one.process.wait()


def test_each_file_is_parsed_by_the_launcher_and_stored_with_the_sets_digest(
    airflow: Airflow, agent: Agent, parser: Parser, start: Any, seen: Path
) -> None:
    members = {"marketing__py": dag("mail", seen) + "\nimport helper\n", "helper__py": "X = 1\n"}
    digest = agent.push(etl__py=dag("etl", seen), marketing__zip=zipped(**members))
    processor = start()
    until(lambda: len(airflow.rows("select 1 from serialized_dag")) == 2)

    models = airflow.rows("select dag_id, relative_fileloc, bundle_name, bundle_version from dag order by dag_id")
    assert models == [
        ("etl", "etl.py", "dagseal", digest),
        ("mail", "marketing.zip/marketing.py", "dagseal", digest),
    ]
    assert {row[0] for row in airflow.rows("select bundle_version from dag_version")} == {digest}
    assert airflow.rows("select version from dag_bundle") == [(digest,)]
    folder = agent.folder_of(digest)
    assert airflow.rows("select fileloc from dag where dag_id = 'etl'") == [(f"{folder}/etl.py",)]
    assert airflow.rows("select source_code from dag_code where fileloc like '%etl.py'") == [(dag("etl", seen),)]

    by_pid = [line.split() for line in seen.read_text().splitlines()]
    assert by_pid and all(str(processor.process.pid) not in pids for pids in by_pid)
    assert airflow.rows("select executor_class from job where job_type = 'DagProcessorJob'") == [
        ("dagseal.airflow.dag_processing",)
    ]


def test_what_is_pushed_is_parsed_when_the_agent_says_so(
    airflow: Airflow, agent: Agent, parser: Parser, start: Any, seen: Path
) -> None:
    """Airflow by itself would look at the bundle after five minutes."""
    agent.push(etl__py=dag("etl", seen), other__py=dag("other", seen))
    start()
    until(lambda: len(airflow.rows("select 1 from serialized_dag")) == 2)
    until(lambda: any(kind == "watch" for kind, _ in agent.questions))

    digest = agent.push(etl__py=dag("etl", seen, task="two"))
    until(lambda: airflow.rows(f"select 1 from dag_version where dag_id = 'etl' and bundle_version = '{digest}'"))
    # The other archive's bytes are the same: the launcher is not asked again, its version is the new set's all the same.
    until(lambda: airflow.rows(f"select 1 from dag where dag_id = 'other' and bundle_version = '{digest}'"))
    assert parser.parsed.count("other.py") == 1

    agent.drop("other.py")
    until(lambda: airflow.rows("select is_stale from dag where dag_id = 'other'") == [(1,)])


def test_the_launchers_words_are_the_import_error_until_it_is_mended(
    airflow: Airflow, agent: Agent, parser: Parser, start: Any, seen: Path
) -> None:
    agent.push(etl__py="import nothing_of_that_name  # airflow dag\n")
    start()
    ((name, text),) = until(lambda: airflow.rows("select filename, stacktrace from import_error"))
    assert name == "etl.py" and "import-error" in text and "nothing_of_that_name" in text
    agent.push(etl__py=dag("etl", seen))
    until(lambda: airflow.rows("select 1 from dag where dag_id = 'etl' and not has_import_errors"))
    assert airflow.rows("select 1 from import_error") == []


def test_without_the_launcher_nothing_is_parsed_and_nothing_taken_away(
    airflow: Airflow, agent: Agent, parser: Parser, start: Any, seen: Path
) -> None:
    agent.push(etl__py=dag("etl", seen))
    processor = start(AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL="0")
    until(lambda: airflow.rows("select 1 from serialized_dag"))
    parser.close()
    until(lambda: processor.said("etl.py", "is not parsed now", "does not answer"))
    assert airflow.rows("select is_stale, has_import_errors from dag") == [(0, 0)]
    assert airflow.rows("select 1 from import_error") == []
    assert processor.process.poll() is None


def test_an_agent_that_was_away_is_asked_again(
    airflow: Airflow, agent: Agent, parser: Parser, start: Any, seen: Path
) -> None:
    agent.push(etl__py=dag("etl", seen))
    agent.refusing = "the log is not there yet"
    processor = start()
    until(lambda: processor.said("the log is not there yet"))
    agent.refusing = ""
    until(lambda: airflow.rows("select 1 from serialized_dag"))


def no_folder(folder: Path) -> None:
    folder.chmod(0o755)
    shutil.rmtree(folder)


def no_file(folder: Path) -> None:
    """Its name is there still."""
    folder.chmod(0o755)
    (folder / "etl.py").unlink()
    (folder / "etl.py").symlink_to("nowhere")


@pytest.mark.parametrize("spoilt", [no_folder, no_file])
def test_a_set_whose_folder_was_cleaned_away_is_asked_for_again(
    airflow: Airflow, agent: Agent, parser: Parser, start: Any, seen: Path, spoilt: Any
) -> None:
    agent.push(etl__py=dag("etl", seen), other__py=dag("other", seen))
    agent.spoilt = spoilt
    processor = start()
    until(lambda: len(airflow.rows("select 1 from serialized_dag")) == 2)

    until(lambda: any(kind == "watch" for kind, _ in agent.questions))
    agent.spoilt = spoilt
    digest = agent.push(etl__py=dag("etl", seen, task="two"))
    until(lambda: airflow.rows(f"select 1 from dag_version where dag_id = 'etl' and bundle_version = '{digest}'"))
    until(lambda: airflow.rows(f"select 1 from dag where dag_id = 'other' and bundle_version = '{digest}'"))
    assert agent.spoilt is None and processor.said("asked for again")
    assert airflow.rows("select 1 from dag where is_stale or has_import_errors") == []
    assert processor.process.poll() is None


def test_what_is_parsed_and_queued_when_the_folder_is_cleaned_away_is_stored_all_the_same(
    airflow: Airflow, agent: Agent, parser: Parser, start: Any, seen: Path, tmp_path: Path
) -> None:
    """Airflow by itself would come back to each file after an hour."""
    cleaned = tmp_path / "cleaned"
    cleaning = f"""
import os, shutil
if not os.path.exists({str(cleaned)!r}):
    os.mkdir({str(cleaned)!r})
    for folder in os.scandir({str(tmp_path / "trees")!r}):
        os.chmod(folder, 0o755)
        shutil.rmtree(folder)
"""
    others = {f"d{number}__py": dag(f"d{number}", seen) for number in range(6)}
    agent.push(a__py=dag("a", seen) + cleaning, **others)
    start(AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL="3600")
    until(lambda: len(airflow.rows("select 1 from serialized_dag")) == 7)
    assert cleaned.exists()
    assert airflow.rows("select 1 from import_error") == []
    assert airflow.rows("select 1 from dag where is_stale or has_import_errors") == []


def test_files_of_other_bundles_are_refused_or_unsafe_by_name(
    airflow: Airflow, agent: Agent, parser: Parser, start: Any, seen: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "plain.py").write_text(dag("plain", tmp_path / "plainly"))
    local = {
        "name": "local",
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(plain)},
    }
    agent.push(etl__py=dag("etl", seen))
    more = {"AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([BUNDLE, local])}
    processor = start("--num-runs", "1", **more)
    assert processor.process.wait(60) == 0
    assert processor.said("refused", "local", "imported here as Airflow's own user")
    assert airflow.rows("select dag_id from dag") == [("etl",)] and not (tmp_path / "plainly").exists()

    processor = start(AIRFLOW__DAGSEAL__UNSAFE_OTHER_BUNDLES="true", **more)
    until(lambda: airflow.rows("select 1 from dag where dag_id = 'plain'"))
    assert processor.said("unsafe_other_bundles")


def test_airflows_own_dag_processor_gets_no_folder(airflow: Airflow, agent: Agent, seen: Path, tmp_path: Path) -> None:
    agent.push(etl__py=dag("etl", seen))
    program = """
from airflow.dag_processing.manager import DagFileProcessorManager
manager = DagFileProcessorManager(max_runs=1)
manager.run()
"""
    airflow.run(program)
    assert not seen.exists() and airflow.rows("select 1 from dag") == []
    airflow.run(program, AIRFLOW__DAGSEAL__ENFORCE="false")
    assert seen.exists()


def test_a_callback_of_a_dag_is_refused_in_the_log(
    airflow: Airflow, agent: Agent, parser: Parser, start: Any, seen: Path
) -> None:
    agent.push(etl__py=dag("etl", seen))
    processor = start()
    until(lambda: airflow.rows("select 1 from serialized_dag"))
    before = len(seen.read_text().splitlines())
    airflow.run("""
from airflow.callbacks.callback_requests import DagCallbackRequest
from airflow.models.db_callback_request import DbCallbackRequest
from airflow.utils.session import create_session
request = DagCallbackRequest(filepath="etl.py", dag_id="etl", run_id="r1", bundle_name="dagseal", bundle_version=None,
                             is_failure_callback=True, msg="x")
with create_session() as session:
    session.add(DbCallbackRequest(callback=request, priority_weight=1))
""")
    until(lambda: processor.said("refused: a DagCallbackRequest of etl.py", "r1"))
    until(lambda: airflow.rows("select 1 from callback") == [])
    assert len(seen.read_text().splitlines()) == before


def test_a_launcher_that_does_not_describe_for_this_account_ends_it_with_the_line_to_change(
    airflow: Airflow, agent: Agent, start: Any, seen: Path, tmp_path: Path
) -> None:
    import socket
    import threading

    from integrity import messages

    agent.push(etl__py=dag("etl", seen))
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "launcher.sock"))
    listening.listen(4)

    def refuse() -> None:
        peer, _ = listening.accept()
        peer.recv(65536)
        peer.sendall(
            messages.encode("refused", error="out-of-scope", rule="", entry="", detail="not in peers.describe")
        )
        peer.close()

    threading.Thread(target=refuse, daemon=True).start()
    processor = start()
    assert processor.process.wait(60) != 0
    assert processor.said("name it in peers.describe of the launcher's policy")
    listening.close()
