"""The tests that documents name exist: in docs/attacks.md as `path::name`, in docs/threat-model.md as files."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ATTACKS = (ROOT / "docs" / "attacks.md").read_text(encoding="utf-8")
THREATS = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([0-9]+) \| (.+) \| (.+) \|$", ATTACKS, re.MULTILINE)
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", ATTACKS)


def found_in(path: Path) -> set[str]:
    """The names of its test functions, as pytest would collect them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {function.name for function in functions if function.name.startswith("test_")}


@pytest.mark.parametrize("path", sorted({path for path, _ in NAMED}))
def test_every_named_test_exists(path: str) -> None:
    assert Path(path).name.startswith("test_")
    assert {name for named, name in NAMED if named == path} <= found_in(ROOT / path)


def test_every_attack_has_its_row_and_every_row_its_answer() -> None:
    assert [int(number) for number, _, _ in ROWS] == list(range(1, len(ROWS) + 1))
    assert len(ROWS) >= 80
    for number, _, answer in ROWS:
        assert re.match(r"`[\w/]+\.py::\w+`|\*\*(open|open in part|does not apply)\*\*: .", answer), (number, answer)


def test_what_looks_like_a_test_is_read_as_one() -> None:
    """Else a slip of the pen would keep a name from being looked for."""
    assert ATTACKS.count("::") == len(NAMED) + ATTACKS.count("`path::name`")


def test_every_attack_file_stands_in_the_threat_model() -> None:
    files = {path.name for path in (ROOT / "tests" / "attacks").glob("test_*.py")}
    assert set(re.findall(r"`(test_t\w+\.py)`", THREATS)) == files
