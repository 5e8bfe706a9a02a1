"""`dagseal dag-processor` with the real launcher: Airflow's own example DAGs, parsed by the parser's account."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagseal.footing import free_port
from dagseal.quickstart import default_user
from dagseal.stack import Stack
from tests.airflow_rig import Agent, Airflow, migrate, until

EXAMPLES = frozenset(
    "example_bash_operator example_branch_labels example_complex example_dag_decorator example_dynamic_task_mapping"  # noqa: SIM905
    " example_nested_branch_dag example_params_ui_tutorial example_setup_teardown example_simplest_dag example_skip_dag"
    " example_task_group example_trigger_target_dag example_xcom tutorial tutorial_dag tutorial_taskflow_api".split()
)
WHO = """
import os
from airflow.sdk import DAG
dag = DAG("who", schedule=None, description=f"{os.getuid()} {os.getgid()}")
"""


def folders() -> list[Path]:
    top = importlib.util.find_spec("airflow")
    assert top is not None and top.origin is not None
    return [
        Path(top.origin).parent / "example_dags",
        Path(top.origin).parent / "providers/standard/example_dags",
    ]


@pytest.fixture
def base() -> Iterator[Path]:
    found = Path(tempfile.mkdtemp(prefix="dagseal-airflow-"))
    found.chmod(0o755)
    yield found
    shutil.rmtree(found, ignore_errors=True)


def test_examples_are_parsed_by_the_parsers_account_and_stored(base: Path) -> None:
    stack = Stack(folder=base / "stack", port=free_port(), task_user=default_user())
    agent = Agent(base)
    (base / "home").mkdir()
    migrate(base / "home")
    process = None
    try:
        stack.prepare()
        # Whoever runs the tests runs the dag processor, and may ask.
        policy = stack.folder / "launcher.toml"
        me = pwd.getpwuid(os.geteuid()).pw_name
        text = policy.read_text()
        if me not in text.partition("describe = [")[2].partition("]")[0]:
            policy.write_text(text.replace("describe = [", f'describe = ["{me}", ', 1))
        stack.start()
        found = {path.stem: path for folder in folders() for path in folder.glob("*.py") if path.stem in EXAMPLES}
        assert len(found) >= 12, sorted(found)
        agent.push(who__py=WHO, broken__py="import nothing_of_that_name\n")
        agent.push(**{f"{name}__py": path.read_bytes() for name, path in found.items()})
        airflow = Airflow(base / "home", agent.socket, str(stack.launcher_socket))
        process = airflow.processor(base / "log")

        def stored() -> set[str]:
            return {
                row[0] for row in airflow.rows("select relative_fileloc from dag join serialized_dag using (dag_id)")
            }

        wanted = {f"{name}.py" for name in found} | {"who.py"}
        until(lambda: stored() >= wanted, seconds=60)
        ((who,),) = airflow.rows("select description from dag where dag_id = 'who'")
        if stack.privileged:
            parser = pwd.getpwnam(stack.accounts.parser)
            assert who == f"{parser.pw_uid} {parser.pw_gid}" and parser.pw_uid != os.geteuid()
        ((error,),) = until(lambda: airflow.rows("select stacktrace from import_error"))
        assert "import-error" in error and "nothing_of_that_name" in error
    finally:
        if process is not None:
            process.kill()
            process.wait()
        stack.stop()
        agent.close()
