"""A zip runs from its verified members, and its files are where their author expects them."""

from __future__ import annotations

from pathlib import Path

import pytest
from task_rig import Grant, Warm, wait_until, zipped

DAG = """
import importlib.resources, inspect, os, pkgutil
from pathlib import Path
import yaml
from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, task
import prices
from lib.rates import RATE
from lib.deep import cellar
import spaces.outer

HERE = Path(__file__).parent
CONFIG = yaml.safe_load((HERE / "config.yaml").read_text())

with DAG("shop", schedule=None, template_searchpath=[str(HERE / "sql")]):
    SQLExecuteQueryOperator(task_id="query", conn_id="shop_db", sql="sql/orders.sql")
    BashOperator(task_id="shell", bash_command="count.sh")

    @task
    def total():
        import late
        assert inspect.getsource(late.late).startswith("def late")
        print("modules", sorted(m.name for m in pkgutil.iter_modules([str(HERE)])))
        return {
            "total": prices.PRICE * RATE * CONFIG["count"] + late.late(),
            "resource": importlib.resources.files("lib").joinpath("note.txt").read_text(),
            "namespace": spaces.outer.WHERE,
            "opened": open(os.path.join(os.path.dirname(prices.__file__), "sql", "orders.sql")).read(),
            "cellar": cellar.DEPTH,
            "mode": oct(os.stat(HERE / "config.yaml").st_mode & 0o777) + oct(os.stat(HERE).st_mode & 0o777),
            "root": str(HERE),
        }

    @task
    def unlisted():
        os.chmod(HERE, 0o700)
        (HERE / "smuggled.py").write_text("print('SMUGGLED')")
        import sys
        sys.path.append(str(HERE))
        import smuggled

    @task
    def breaks():
        prices.divide()

    total() >> [unlisted(), breaks()]
"""
MEMBERS = {
    "shop.py": DAG,
    "prices.py": "PRICE = 3\n\ndef divide():\n    return PRICE / 0  # airless\n",
    "late.py": "def late():\n    return 1000\n",
    "lib/__init__.py": "",
    "lib/rates.py": "from . import deep\nRATE = 2\n",
    "lib/deep/__init__.py": "",
    "lib/deep/cellar.py": "DEPTH = 7\n",
    "lib/note.txt": "beside the module",
    "spaces/outer.py": "WHERE = __name__\n",
    "sql/orders.sql": "SELECT * FROM orders WHERE day = '{{ ds }}'",
    "sql/count.sh": "echo the day is {{ ds }}",
    "config.yaml": "count: 5\n",
}
ARCHIVE = zipped(MEMBERS)


def test_a_zip_is_described_and_its_digests_do_not_depend_on_its_folder(
    describer: Warm, runner: Warm, open_folder: Path
) -> None:
    first = describer.describe("shop.zip", ARCHIVE)
    assert first.kind == "described", first
    (dag,) = first.fields["dags"]
    assert (dag["dag_id"], dag["member"]) == ("shop", "shop.py")
    elsewhere = Warm("describe", environment={"PYTHONHASHSEED": "9", "TMPDIR": str(open_folder)})
    assert elsewhere.describe("shop.zip", ARCHIVE, variant=1).tasks == first.tasks
    elsewhere.close()
    assert first.tasks["shop", "query"]["connections"] == ["shop_db"]
    ran = runner.run("shop.zip", ARCHIVE, "shop", "total")
    assert ran.task_digest == first.tasks["shop", "total"]["digest"]


def test_modules_and_files_are_found(runner: Warm) -> None:
    ran = runner.run("shop.zip", ARCHIVE, "shop", "total")
    assert ran.state == "success", ran
    found = ran.xcom()
    root = Path(found.pop("root"))
    assert found == {
        "total": 1030,
        "resource": "beside the module",
        "namespace": "spaces.outer",
        "opened": MEMBERS["sql/orders.sql"],
        "cellar": 7,
        "mode": "0o4000o500",
    }
    assert "modules ['late', 'lib', 'prices', 'shop']" in ran.log
    assert root.name.startswith("dagseal-") and not root.exists()


def test_the_copy_of_a_killed_task_is_removed_by_its_warm_process(runner: Warm) -> None:
    dag = """
import os, signal
from pathlib import Path
from airflow.sdk import DAG, task
with DAG("k", schedule=None):
    @task
    def killed():
        print("root is", Path(__file__).parent, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    killed()
"""
    ran = runner.run("k.zip", zipped({"k.py": dag, "a/b/c.txt": "x"}), "k", "killed")
    assert ran.kind == "eof"
    root = Path(ran.log.partition("root is ")[2].split()[0])
    assert root.name.startswith("dagseal-")
    wait_until(lambda: not root.exists(), "the copy is still there")


def test_templates_are_rendered_from_the_archive(runner: Warm) -> None:
    ran = runner.run("shop.zip", ARCHIVE, "shop", "shell")
    assert ran.state == "success", ran
    assert "the day is 2026-01-31" in ran.log


def test_a_sql_template_reaches_its_connection(runner: Warm) -> None:
    members = MEMBERS | {
        "shop.py": DAG.replace("SELECT *", "SELECT *").replace('conn_id="shop_db"', 'conn_id="nowhere"')
    }
    ran = runner.run("shop.zip", zipped(members), "shop", "query")
    assert (ran.state, ran.fields["exit_code"]) == ("failed", 1)
    assert "SELECT * FROM orders WHERE day = '2026-01-31'" in ran.log
    assert "connection 'nowhere' was not granted" in ran.fields["detail"]


def test_a_module_that_is_no_member_cannot_be_imported(runner: Warm) -> None:
    ran = runner.run("shop.zip", ARCHIVE, "shop", "unlisted")
    assert ran.state == "failed"
    assert ran.fields["detail"] == "ModuleNotFoundError: No module named 'smuggled'"
    assert "SMUGGLED" not in ran.log


def test_tracebacks_show_the_archives_source(runner: Warm) -> None:
    ran = runner.run("shop.zip", ARCHIVE, "shop", "breaks")
    assert ran.fields["detail"] == "ZeroDivisionError: division by zero"
    assert "return PRICE / 0  # airless" in ran.log


def test_members_that_are_not_the_manifests_are_refused(runner: Warm) -> None:
    members = [{"name": "other.py", "size": 1, "digest": "sha512:" + "0" * 128}]
    ran = runner.run("shop.zip", ARCHIVE, "shop", "total", members=members)
    assert (ran.kind, ran.fields["error"]) == ("refused", "malformed")


@pytest.mark.parametrize(
    ("members", "rule", "entry", "words"),
    [
        pytest.param({"jinja2.py": "x = 1", "d.py": DAG}, "shadows-module", "jinja2.py", "jinja2", id="installed"),
        pytest.param({"yaml/a.py": "x = 1", "d.py": DAG}, "shadows-module", "yaml/a.py", "yaml", id="package"),
        pytest.param({"a.py": "x = 1", "b.txt": "airflow dag"}, "no-dag-found", "", "no dag", id="no-dag"),
        pytest.param(
            {"a.py": "from airflow.sdk import DAG\nimport b", "b.py": "def f(:\n  pass"},
            "source-syntax", "b.py:1", "SyntaxError", id="syntax-in-helper",
        ),
        pytest.param(
            {"a.py": "from airflow.sdk import DAG\nimport b", "b.py": "x = 1\nraise KeyError('gone')"},
            "import-error", "b.py:2", "KeyError: 'gone'", id="raise-in-helper",
        ),
        pytest.param(
            {"a.py": "from airflow.sdk import DAG\nd=DAG('one')", "b.py": "from airflow.sdk import DAG\nd=DAG('one')"},
            "duplicate-dag-id", "b.py", "'one'", id="twice",
        ),
    ],
)  # fmt: skip
def test_a_zip_that_cannot_be_used_is_refused(
    describer: Warm, members: dict[str, str | bytes], rule: str, entry: str, words: str
) -> None:
    answer = describer.describe("bad.zip", zipped(members))
    assert (answer.kind, answer.fields.get("rule")) == ("refused", rule), answer
    assert answer.fields["entry"] == entry
    assert words in answer.fields["detail"]


def test_only_top_level_modules_that_speak_of_airflow_are_taken_for_dag_files(describer: Warm) -> None:
    members: dict[str, str | bytes] = {
        "main.py": "from airflow.sdk import DAG\nd = DAG('main')",
        "script.py": "raise SystemExit('not imported')",
        "inner/other.py": "from airflow.sdk import DAG\nraise RuntimeError('not imported')",
    }
    answer = describer.describe("some.zip", zipped(members))
    assert [dag["dag_id"] for dag in answer.fields["dags"]] == ["main"]


def test_a_task_of_a_zip_gets_its_grant(runner: Warm) -> None:
    dag = """
from airflow.sdk import DAG, task
with DAG("d", schedule=None):
    @task
    def t(ti=None):
        from airflow.sdk import BaseHook
        return BaseHook.get_connection("shop").host
    t()
"""
    grant = Grant(connections={"shop": '{"conn_type": "http", "host": "shop.example"}'})
    ran = runner.run("d.zip", zipped({"d.py": dag}), "d", "t", grant)
    assert ran.xcom() == "shop.example"
