"""Which files of a dags folder make which archive: by their text alone."""

from __future__ import annotations

import io
import zipfile

import pytest

from dagseal.cli.importing import collisions, plan
from integrity.errors import InvalidArchiveError, UnsafeArchiveError

DAG = "from airflow.sdk import DAG\nDAG('x')\n"
FOLDER = {
    "alone.py": DAG + "import json, pendulum\n",
    "sales.py": DAG + "from shared.tools import clean\nDAG('y', default_args={'owner': 'ada'})\n",
    "team/etl.py": DAG + "import consts\nfrom plain import deep\nBashOperator(bash_command='run.sh', owner='grace')\n",
    "team/run.sh": "echo",
    "lazy.py": DAG + "def f():\n    import importlib\n    importlib.import_module('shared.more')\n",
    "consts.py": "import second\n",
    "second.py": "X = 1\n",
    "plain/deep.py": "from shared import tools\n",
    "plain/other.py": "",
    "shared/__init__.py": "from .more import x\n",
    "shared/more.py": "",
    "shared/tools/__init__.py": "",
    "shared/tools/query.sql": "select 1",
    "consumer.py": DAG + "import alone\n",
    "team/consts.py": DAG + "import consts\n",
    "broken.py": "def airflow dag(:\n",
}
FILES = frozenset(FOLDER)
SHARED = {"shared/__init__.py", "shared/more.py", "shared/tools/__init__.py", "shared/tools/query.sql"}


def read(path: str) -> bytes:
    return FOLDER[path].encode()


@pytest.mark.parametrize(
    ("source", "name", "members"),
    [
        ("alone.py", "alone.py", {"alone.py"}),
        ("sales.py", "sales.zip", {"sales.py", *SHARED}),
        ("lazy.py", "lazy.zip", {"lazy.py", *SHARED}),
        ("team/etl.py", "team_etl.zip", {"etl.py", "run.sh", "consts.py", "second.py", "plain/deep.py", *SHARED}),
    ],
)
def test_a_dag_file_brings_what_it_imports_of_the_folder(source: str, name: str, members: set[str]) -> None:
    found = plan(source, FILES, read, frozenset({"alone.py", "sales.py", "consts.py"}))
    assert (found.name, set(found.members)) == (name, members)
    data = found.data(read)
    assert data == found.data(read)
    if name.endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            assert set(file.namelist()) == members
            assert file.read(source.rpartition("/")[2]) == read(source)
    else:
        assert data == read(source)


def test_owners_are_what_the_text_says_plainly() -> None:
    assert plan("sales.py", FILES, read).owners == {"ada"}
    assert plan("team/etl.py", FILES, read).owners == {"grace"}
    assert plan("alone.py", FILES, read).owners == set()


def test_what_cannot_be_one_archive_is_named() -> None:
    with pytest.raises(InvalidArchiveError, match="which defines DAGs of its own"):
        plan("consumer.py", FILES, read, frozenset({"alone.py", "consumer.py"}))
    with pytest.raises(UnsafeArchiveError, match="rename one"):
        plan("team/consts.py", FILES, read)
    with pytest.raises(InvalidArchiveError, match="cannot be read as Python"):
        plan("broken.py", FILES, read)


def test_two_files_of_one_name_are_found() -> None:
    more = {"a/b.py": DAG, "a_b.py": DAG + "import second\n", "second.py": ""}
    planned = [plan(path, frozenset(more), lambda path: more[path].encode()) for path in ("a/b.py", "a_b.py")]
    assert collisions(planned) == {"a_b": ["a/b.py", "a_b.py"]}
