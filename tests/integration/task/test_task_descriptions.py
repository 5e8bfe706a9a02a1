"""What a description says of tasks, and what it refuses to describe, with the call, field or line that is to be changed."""

from __future__ import annotations

import pytest
from task_rig import Warm

DAG = """
from datetime import datetime
from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, task
with DAG("d", schedule=None, default_args={"run_as_user": "etl"}):
    SQLExecuteQueryOperator(task_id="sql", conn_id="warehouse", sql="select 1", queue="big", run_as_user="dba")
    SQLExecuteQueryOperator(task_id="templated", conn_id="{{ params.c }}", sql="select 1")
    SQLExecuteQueryOperator.partial(task_id="mapped", conn_id="lake").expand(sql=["1", "2"])
    SQLExecuteQueryOperator.partial(task_id="mapped_conn", sql="1").expand(conn_id=["b", "a"])
    @task
    def plain(): ...
    plain()
"""


def test_what_is_said_of_a_task(describer: Warm) -> None:
    tasks = describer.describe("d.py", DAG.encode()).tasks
    said = {
        task_id: tuple(task[key] for key in ("operator", "run_as_user", "queue", "connections", "mapped"))
        for (_, task_id), task in tasks.items()
    }
    sql = "SQLExecuteQueryOperator"
    assert said == {
        "sql": (sql, "dba", "big", ["warehouse"], False),
        "templated": (sql, "etl", "default", [], False),
        "mapped": (sql, "etl", "default", ["lake"], True),
        "mapped_conn": (sql, "etl", "default", ["a", "b"], True),
        "plain": ("_PythonDecoratedOperator", "etl", "default", [], False),
    }


HEAD = """
import os, random, time, uuid, datetime, pendulum
from datetime import datetime as dt, date
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import BaseHook, Connection, DAG, Variable, task
"""

UNSTABLE = {
    "datetime.now": "dt.now()",
    "datetime.now(tz)": "dt.now(datetime.timezone.utc).date()",
    "utcnow": "dt.utcnow().date()",
    "datetime.today": "dt.today().date()",
    "date.today": "date.today()",
    "pendulum.now": "pendulum.now().date()",
    "pendulum.today": "pendulum.today()",
    "time.time": "int(time.time() / 3600)",
    "time.time_ns": "time.time_ns() // 10**13",
    "localtime": "time.localtime().tm_yday",
    "gmtime": "time.gmtime(None).tm_yday",
    "strftime": "time.strftime('%Y-%m-%d')",
    "ctime": "time.ctime()[:10]",
    "clock_gettime": "int(time.clock_gettime(time.CLOCK_REALTIME) / 3600)",
    "random": "random.random()",
    "uuid4": "uuid.uuid4()",
    "uuid1": "uuid.uuid1()",
    "pid": "os.getpid()",
    "hash": "hash('a')",
    "set order": "set('abcdefgh')",
    "id": "object()",
}


@pytest.fixture(scope="module")
def other() -> Warm:
    warm = Warm("describe", environment={"PYTHONHASHSEED": "12345"})
    yield warm  # type: ignore[misc]
    warm.close()


@pytest.mark.parametrize("expression", UNSTABLE.values(), ids=UNSTABLE)
def test_an_unstable_field_is_named(describer: Warm, other: Warm, expression: str) -> None:
    dag = (
        HEAD + f"with DAG('d', schedule=None):\n    BashOperator(task_id='t', bash_command=f\"echo {{{expression}}}\")"
    )
    first, second = describer.describe("d.py", dag.encode()), other.describe("d.py", dag.encode(), variant=1)
    (one,), (two,) = first.tasks.values(), second.tasks.values()
    assert one["digest"] != two["digest"]
    assert [name for name in one["fields"] if one["fields"][name] != two["fields"][name]] == ["bash_command"]


def test_the_clock_of_both_variants_is_right_but_for_the_shift(describer: Warm, other: Warm) -> None:
    dag = (
        HEAD
        + """
a = time.time()
for b in (dt.now().timestamp(), dt.now(datetime.timezone.utc).timestamp(), dt.today().timestamp(), time.time_ns() / 1e9,
          dt.utcnow().replace(tzinfo=datetime.timezone.utc).timestamp(), time.mktime(time.localtime()),
          pendulum.now().timestamp(),
          time.clock_gettime(time.CLOCK_REALTIME)):
    assert abs(a - b) < 5, (a, b)
assert isinstance(pendulum.now(), pendulum.DateTime) and type(dt.now()) is dt and dt.now().tzinfo is None
assert date.today() == dt.now().date()
with DAG('d', schedule=None):
    BashOperator(task_id='t', bash_command='true')
"""
    )
    assert describer.describe("d.py", dag.encode()).kind == "described"
    assert other.describe("d.py", dag.encode(), variant=1).kind == "described"


READS = {
    "variable": ("Variable.get('size')", "reads-variable", "Variable.get('size')"),
    "variable with default": ("Variable.get('size', default=1)", "reads-variable", "Variable.get('size')"),
    "connection": ("BaseHook.get_connection('db')", "reads-connection", "BaseHook.get_connection('db')"),
    "sdk connection": ("Connection.get('db')", "reads-connection", "Connection.get('db')"),
    "caught": (
        "exec('try:\\n  BaseHook.get_connection(\"db\")\\nexcept Exception: pass')",
        "reads-connection",
        "('db')",
    ),
    "keys": ("list(Variable.keys(prefix='a'))", "reads-variable", "('a*')"),
    "set": ("Variable.set('size', 1)", "reads-variable", "('size')"),
    "models": (
        "__import__('airflow.models').models.Variable.get('size', default_var=1)",
        "reads-variable",
        "Variable.get('size')",
    ),
    "from the environment": ("Variable.get('region')", "reads-variable", "Variable.get('region')"),
}


@pytest.mark.parametrize(("expression", "rule", "call"), READS.values(), ids=READS)
def test_a_read_at_import_is_refused_with_the_call_and_the_line(
    describer: Warm, expression: str, rule: str, call: str
) -> None:
    dag = HEAD + f"x = {expression}\nwith DAG('d', schedule=None):\n    BashOperator(task_id='t', bash_command='true')"
    answer = describer.describe("d.py", dag.encode())
    assert (answer.kind, answer.fields.get("rule")) == ("refused", rule), answer
    assert call in answer.fields["detail"]
    assert answer.fields["entry"] == "d.py:6"
    assert "inside a task" in answer.fields["detail"]


def test_an_archive_check_admits_a_read_with_a_default(describer: Warm) -> None:
    dag = (
        HEAD + "x = Variable.get('size', default=1)\n"
        "with DAG('d', schedule=None):\n    BashOperator(task_id='t', bash_command='true')"
    )
    assert describer.describe("d.py", dag.encode(), task_check="archive").kind == "described"
    without = HEAD + "x = Variable.get('size')\nd = DAG('d', schedule=None)"
    answer = describer.describe("d.py", without.encode(), task_check="archive")
    assert answer.fields["rule"] == "import-error"
    assert "was asked for while the archive was imported" in answer.fields["detail"]


REFUSED = {
    "syntax": ("x = 1\ndef f(:\n", "source-syntax", "d.py:2", "invalid syntax"),
    "indentation": ("if 1:\nx = 1\n", "source-syntax", "d.py:2", "IndentationError"),
    "too complex": ("x = " + "(" * 5000 + "1" + ")" * 5000, "source-syntax", "d.py:1", "too many nested parentheses"),
    "compiler gives up": ("x = " + "-" * 60000 + "1", "source-too-complex", "d.py", "less deeply nested"),
    "missing module": ("import nowhere_to_be_found", "import-error", "d.py:1", "No module named 'nowhere_to_be_found'"),
    "exception": ("\n\nraise ValueError('bad \\ud800')", "import-error", "d.py:3", "ValueError: bad \\ud800"),
    "recursion": ("def f(): f()\nf()", "import-error", "d.py:1", "RecursionError"),
    "exit": ("import sys\nsys.exit(3)", "import-exits", "d.py:2", "SystemExit: 3"),
    "interrupt": ("raise KeyboardInterrupt", "import-error", "d.py:1", "KeyboardInterrupt"),
    "nothing": ("x = 1", "no-dag-found", "", "no dag"),
    "dag twice": (HEAD + "a = DAG('d')\nb = DAG('d')", "duplicate-dag-id", "d.py", "'d' is defined twice"),
    "task twice": (
        HEAD + "with DAG('d'):\n    BashOperator(task_id='t', bash_command='')\n    BashOperator(task_id='t', bash_command='')",
        "duplicate-task-id", "d.py:8", "'t'",
    ),
    "cycle": (
        HEAD + "with DAG('d'):\n    a = BashOperator(task_id='a', bash_command='')\n"
        "    b = BashOperator(task_id='b', bash_command='')\n    a >> b >> a",
        "invalid-dag", "d.py", "Cycle",
    ),
    "not serialisable": (
        HEAD + "class Strange:\n    def serialize(self): raise TypeError('cannot be written down')\n"
        "with DAG('d'):\n    BashOperator(task_id='a', bash_command='', env={'a': Strange()})",
        "not-serialisable", "d.py", "cannot be written down",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("source", "rule", "entry", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_described_is_refused(describer: Warm, source: str, rule: str, entry: str, words: str) -> None:
    answer = describer.describe("d.py", source.encode())
    assert (answer.kind, answer.fields.get("error"), answer.fields.get("rule")) == (
        "refused",
        "invalid-archive",
        rule,
    ), answer
    assert answer.fields["entry"] == entry
    assert words in answer.fields["detail"]


def test_an_exit_that_cannot_be_caught_closes_the_socket(describer: Warm) -> None:
    assert describer.describe("d.py", b"import os\nos._exit(0)").kind == "eof"


def test_what_the_archive_prints_at_import_is_log(describer: Warm) -> None:
    answer = describer.describe("d.py", b"import os\nprint('hello')\nos.system('echo from a child')\nraise ValueError")
    assert "hello" in answer.log and "from a child" in answer.log and "Traceback" in answer.log


def test_a_lone_module_that_would_hide_an_installed_one_is_refused(describer: Warm) -> None:
    answer = describer.describe("yaml.py", DAG.encode())
    assert (answer.fields["error"], answer.fields["rule"]) == ("unsafe-archive", "shadows-module")
