"""The table of rules is whole: it has every rule that the code can name, and `docs/bad-uploads.md` tells each to our users."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from integrity.errors import ArchiveError
from submit_api import problems
from tests.bad_uploads import CASES
from vocabulary import archiverules

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs" / "bad-uploads.md").read_text(encoding="utf-8")
ELSEWHERE = {"rule", "too-large"}  # a parameter's name; what the client calls a 413 that is no archive's
ELSEWHERE |= {
    "imports-a-dag-file",
    "two-of-a-name",
    "not-python",
}  # of `dagseal import-dags`, before there is an archive
ELSEWHERE |= {"serialised-too-large"}  # for Airflow's dag processor, of what was recorded long ago
RUN_TIME = {"no-such-dag", "no-such-task"}  # of a launch, not of an upload


def raised() -> set[str]:
    """The first argument of every refusal, where it is a literal."""
    found = set()
    for folder in ("vocabulary", "launcher", "notary", "submit_api", "dagseal"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
                    "InvalidArchiveError",
                    "UnsafeArchiveError",
                    "_refuse",
                ):
                    for literal in ast.walk(node.args[0]):
                        if isinstance(literal, ast.Constant) and isinstance(literal.value, str):
                            found.add(literal.value)
    return found


def test_every_rule_in_the_code_is_in_the_table_and_the_other_way_round() -> None:
    computed = {"zip-case-collision", "zip-unicode-collision", "duplicate-task-id", "import-error"}  # by a variable
    computed |= {"reads-connection", "reads-variable"}
    named = {rule for rule in raised() if re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", rule)}
    assert (named | computed) - RUN_TIME - ELSEWHERE == set(archiverules.RULES)
    assert not archiverules.UNSAFE_RULES & archiverules.INVALID_RULES
    assert set(archiverules.RULES) >= archiverules.TOO_LARGE_RULES | archiverules.UNSUPPORTED_RULES


def test_the_document_has_every_rule_with_its_status() -> None:
    told = set(re.findall(r"(\d{3}) `([a-z0-9-]+)`", DOCUMENT))
    for rule, kind in archiverules.RULES.items():
        error: ArchiveError = kind(rule, "detail")
        assert (str(problems.status_of(error)), rule) in told, rule


def test_the_document_says_of_each_row_what_was_tried() -> None:
    rows = dict(re.findall(r"^\| (\d+) (\|.*)$", DOCUMENT, re.MULTILINE))
    assert list(map(int, rows)) == list(range(1, 85))
    for case in CASES:
        if case.status != 201:
            assert f"{case.status} `{case.problem}`" in rows[str(case.row)], case
        else:
            assert "accepted" in rows[str(case.row)] and case.why, case
