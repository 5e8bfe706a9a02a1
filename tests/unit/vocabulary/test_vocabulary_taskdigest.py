"""The task digest: every doctest of the package besides."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import vocabulary
from integrity.digests import Digest
from vocabulary import taskdigest

MODULES = sorted(module.name for module in pkgutil.iter_modules(vocabulary.__path__))


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_the_docstrings(module: str) -> None:
    assert doctest.testmod(importlib.import_module(f"vocabulary.{module}")).failed == 0


def test_task_digest_is_bound_to_the_archive_and_the_entry() -> None:
    def digest(archive: bytes = b"a", dag: str = "d", task: str = "t", entry: object = 1) -> str:
        return str(taskdigest.task_digest(Digest.of(archive), dag, task, entry, root="/r"))

    others = [digest(), digest(archive=b"b"), digest(dag="e"), digest(task="u"), digest(entry=2)]
    assert len(set(others)) == 5
    text = b'dagseal/task/v1\n%s\n{"dag_id":"d","task":1,"task_id":"t"}' % str(Digest.of(b"a")).encode()
    assert others[0] == str(Digest.of(text))


def test_task_entry_without_what_differs_between_hosts() -> None:
    def entry(root: str, prefix: str, order: list[object]) -> object:
        return {
            "fileloc": f"{root}/etl.py",
            "callable": f"unusual_prefix_{prefix}_etl.f",
            "template_fields": order,
            "ratio": 0.5,
            "large": 2**60,
            "flag": True,
            "none": None,
            "many": (1, [2]),
        }

    one = taskdigest.normalise(entry("/tmp/a", "0" * 40, ["b", "a", 1]), root="/tmp/a")
    two = taskdigest.normalise(entry("/srv/b", "f" * 40, [1, "a", "b"]), root="/srv/b")
    assert (
        one
        == two
        == {
            "fileloc": "/dagseal-archive/etl.py",
            "callable": "etl.f",
            "template_fields": ["a", "b", 1],
            "ratio": "float:0x1.0000000000000p-1",
            "large": "int:1152921504606846976",
            "flag": True,
            "none": None,
            "many": [1, [2]],
        }
    )


def test_defaults_of_params_are_inputs_not_the_task() -> None:
    def param(default: str) -> dict[str, object]:
        return {"day": {"__class": "airflow.sdk.definitions.param.Param", "default": default, "description": "which"}}

    one, two = (taskdigest.normalise({"params": param(day)}, root="/r") for day in ("2026-11-22", "2026-11-23"))
    assert one == two == {"params": {"day": {"__class": "airflow.sdk.definitions.param.Param", "description": "which"}}}


def test_task_entry_that_is_no_json() -> None:
    with pytest.raises(TypeError, match="holds set"):
        taskdigest.normalise({1}, root="/r")
    with pytest.raises(ValueError, match="empty root"):
        taskdigest.task_digest(Digest.of(b""), "d", "t", 1, root="")
