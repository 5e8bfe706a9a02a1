"""`dagseal dag-processor` with a real API, agent and launcher: Airflow's own examples, parsed by the parser's account."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagseal.footing import free_port
from dagseal.quickstart import default_user
from dagseal.stack import Stack
from tests.airflow_rig import Airflow, migrate, until

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


@pytest.fixture
def stack(base: Path) -> Iterator[Stack]:
    me = pwd.getpwuid(os.geteuid()).pw_name
    readers = base / "readers.toml"
    readers.write_text(f'[{me}]\nprincipal = "admin"\n')
    readers.chmod(0o644)
    found = Stack(
        folder=base / "stack",
        port=free_port(),
        task_user=default_user(),
        more_agent_toml=f'readers_file = "{readers}"\n',
    )
    try:
        found.prepare()
        # Whoever runs the tests runs the dag processor, and may ask.
        policy = found.folder / "launcher.toml"
        text = policy.read_text()
        if me not in text.partition("describe = [")[2].partition("]")[0]:
            policy.write_text(text.replace("describe = [", f'describe = ["{me}", ', 1))
        found.start()
        yield found
    finally:
        found.stop()


def push(stack: Stack, *paths: Path) -> None:
    command = [sys.executable, "-m", "dagseal", "push", *map(str, paths)]
    done = subprocess.run(command, env=stack.environment(HOME=str(stack.folder)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_examples_are_parsed_by_the_parsers_account_and_what_is_pushed_is_there_at_once(
    base: Path, stack: Stack
) -> None:
    found = {path.stem: path for folder in folders() for path in folder.glob("*.py") if path.stem in EXAMPLES}
    assert len(found) >= 12, sorted(found)
    who = base / "who.py"
    who.write_text(WHO)
    push(stack, who, *found.values())
    (base / "home").mkdir()
    migrate(base / "home")
    airflow = Airflow(base / "home", str(stack.releases_socket), str(stack.launcher_socket))
    process = airflow.processor(base / "log")

    def stored() -> set[str]:
        return {row[0] for row in airflow.rows("select relative_fileloc from dag join serialized_dag using (dag_id)")}

    try:
        until(lambda: stored() == {f"{name}.py" for name in found} | {"who.py"}, seconds=150)
        assert airflow.rows("select 1 from import_error") == []
        ((said,),) = airflow.rows("select description from dag where dag_id = 'who'")
        if stack.privileged:
            parser = pwd.getpwnam(stack.accounts.parser)
            assert said == f"{parser.pw_uid} {parser.pw_gid}" and parser.pw_uid != os.geteuid()
        ((before,),) = airflow.rows("select version from dag_bundle")
        assert len(before) == 128

        who.write_text(WHO + "# another\n")
        push(stack, who)
        until(lambda: airflow.rows("select version from dag_bundle") != [(before,)])
        ((after,),) = airflow.rows("select version from dag_bundle")
        until(lambda: airflow.rows(f"select 1 from dag where dag_id = 'who' and bundle_version = '{after}'"))

        # The folder's owner or root changes it: the next who asks gets another, with the recorded bytes.
        ((fileloc,),) = airflow.rows("select fileloc from dag where dag_id = 'who'")
        if stack.privileged:
            Path(fileloc).write_text("import os\n")
            program = """
from airflow.dag_processing.bundles.manager import DagBundlesManager
bundle = DagBundlesManager().get_bundle("dagseal")
bundle.initialize()
print((bundle.path / "who.py").read_text())
"""
            assert airflow.run(program).strip().endswith("# another")
    finally:
        process.kill()
        process.wait()
