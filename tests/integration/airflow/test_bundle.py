"""`SealedBundle` through Airflow's own DagBundlesManager, in processes of their own."""

from __future__ import annotations

import os
from pathlib import Path

from tests.airflow_rig import Agent, Airflow

ASK = """
import json, sys
from airflow.dag_processing.bundles.manager import DagBundlesManager
version = {version!r}
bundle = DagBundlesManager().get_bundle(name="dagseal", version=version)
assert bundle.supports_versioning and bundle.view_url_template() is None
try:
    bundle.initialize()
    current = bundle.get_current_version()
    print(json.dumps([current.version, bundle.version, str(bundle.path), sorted(p.name for p in bundle.path.iterdir())]))
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


def ask(airflow: Airflow, version: str | None = None, before: str = "", **more: str) -> list[str]:
    import json

    found: list[str] = json.loads(airflow.run(before + ASK.format(version=version), **more).splitlines()[-1])
    return found


def test_a_version_is_the_sets_digest_and_stands_for_its_files(airflow: Airflow, agent: Agent) -> None:
    first = agent.push(etl__py="# one\n")
    second = agent.push(etl__py="# two\n", more__zip=b"PK")
    assert ask(airflow) == [second, second, str(agent.folder_of(second)), ["etl.py", "more.zip"]]
    assert ask(airflow, first) == [first, first, str(agent.folder_of(first)), ["etl.py"]]
    assert {question["want"] for kind, question in agent.questions if kind == "set"} == {"folder"}
    assert not [path for path in airflow.home.rglob("*") if "lock" in path.name or "versions" in path.name]


def test_a_changed_folder_is_seen_and_another_is_given(airflow: Airflow, agent: Agent) -> None:
    digest = agent.push(etl__py="# one\n")
    folder = agent.folder_of(digest)
    folder.chmod(0o755)
    (folder / "etl.py").unlink()
    (folder / "etl.py").write_text("import os\n")
    path = Path(ask(airflow)[2])
    assert path != folder and (path / "etl.py").read_text() == "# one\n"


def test_it_says_what_to_do(airflow: Airflow, agent: Agent) -> None:
    agent.push(etl__py="# one\n")
    kind, text = ask(airflow, "0" * 128)
    assert kind == "NotFoundError" and "there is no such set" in text
    kind, text = ask(airflow, "a1b2c3")
    assert kind == "SettingsError" and "clear it, or start a new run" in text
    agent.refusing = "the log is stale"
    assert ask(airflow) == ["NotFoundError", "the agent: not-found: the log is stale"]
    agent.close()
    os.unlink(agent.socket)
    kind, text = ask(airflow)
    assert kind == "FetchError" and agent.socket in text and "is it running?" in text


def test_it_is_not_given_out_where_airflow_would_import_it_as_its_own_user(airflow: Airflow, agent: Agent) -> None:
    agent.push(etl__py="# one\n")
    kind, text = ask(airflow, before="import os; os.environ['_AIRFLOW_PROCESS_CONTEXT'] = 'server'\n")
    assert kind == "SettingsError" and "dagseal dag-processor" in text
    task = "import airflow.sdk.execution_time.task_runner as runner; runner.SUPERVISOR_COMMS = object()\n"
    kind, text = ask(airflow, before=task)
    assert kind == "SettingsError" and "queue_to_coordinator" in text
    assert len(ask(airflow, before=task, AIRFLOW__DAGSEAL__ENFORCE="false")) == 4
    assert [kind for kind, _ in agent.questions] == ["set"]
