"""The archive rules against archives that hypothesis makes up: never anything but our refusals, each with a rule of the table;
and whatever is accepted, `zipfile` extracts to exactly the members that we listed, and `zipimport` finds the same modules.

Some hundred in `make test`, ten minutes of them in `make soak`. Seen to fail when weakened: `_content_offset` that does not
compare, `read_members` without `check_together`.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import time
import unicodedata

import pytest
from archive_agreement import agree
from archive_mutations import archives_of_all_kinds, built
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from integrity.errors import ArchiveError, UnsafeArchiveError
from vocabulary import archives, membernames, sources
from vocabulary.archiverules import RULES

SOAK_SECONDS = float(os.environ.get("DAGSEAL_SOAK_SECONDS", "600"))


def judge(data: bytes, folder: pathlib.Path) -> str:
    """The rule that refuses it, or nothing for what is accepted and read alike."""
    try:
        archive = archives.read("x.zip", data)
        archives.check_identifiers(archive)
    except ArchiveError as error:
        assert isinstance(error, RULES[error.rule]) and error.entry.isprintable() and str(error).isprintable()
        with pytest.raises(ArchiveError) as again:
            assert archives.read_digests("x.zip", memoryview(data))
            archives.check_identifiers(archives.read("x.zip", memoryview(data)))
        assert (again.value.rule, again.value.entry) == (error.rule, error.entry)
        return error.rule
    assert archives.read_digests("x.zip", data) == archives.manifest_members(archive)
    try:
        agree(archive, data, folder)
    finally:
        shutil.rmtree(folder / "out", ignore_errors=True)
    return ""


@given(archives_of_all_kinds)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_made_up_archives(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    judge(data, tmp_path_factory.getbasetemp())


def test_much_of_it_is_accepted_and_the_rest_refused_for_many_reasons(tmp_path: pathlib.Path) -> None:
    """Else the other test says nothing."""
    rules: list[str] = []

    @given(built())
    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    def many(data: bytes) -> None:
        rules.append(judge(data, tmp_path))

    many()
    assert rules.count("") >= 10 and len(set(rules)) >= 10, rules


@given(st.text(max_size=400) | st.binary(max_size=400).map(lambda data: data.decode("latin-1")))
@settings(max_examples=300, deadline=None)
def test_made_up_sources(text: str) -> None:
    """Also those that are no Python: the compiler, not we, says so."""
    source = text.encode("utf-8", "surrogatepass")
    try:
        sources.check("x.py", source)
        sources.check_identifiers("x.py", source)
    except UnsafeArchiveError as error:
        assert RULES[error.rule] is UnsafeArchiveError


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_made_up_names(name: str) -> None:
    """A name that passes is a file below the folder that it is extracted to, on every system."""
    try:
        membernames.check(name)
    except UnsafeArchiveError as error:
        assert RULES[error.rule] is UnsafeArchiveError and error.entry.isprintable()
        return
    assert os.path.normpath(name) == name.removesuffix("/") and not os.path.isabs(name)
    assert all(character.isprintable() or unicodedata.category(character) == "Zs" for character in name)


@pytest.mark.soak
@pytest.mark.timeout(SOAK_SECONDS + 300)
def test_made_up_archives_for_long(tmp_path_factory: pytest.TempPathFactory) -> None:
    """`DAGSEAL_SOAK_SECONDS` says how long, ten minutes by default."""
    ends, examples, found = time.monotonic() + SOAK_SECONDS, 0, dict.fromkeys(["", *RULES], 0)
    folder = tmp_path_factory.mktemp("soak")

    @given(archives_of_all_kinds)
    @settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def some(data: bytes) -> None:
        nonlocal examples
        examples += 1
        found[judge(data, folder)] += 1

    while time.monotonic() < ends:
        some()
    print(
        f"{examples} archives, {found['']} accepted, the others refused by {sum(1 for n in found.values() if n) - 1} rules"
    )
    print({rule: count for rule, count in sorted(found.items(), key=lambda item: -item[1]) if count})
    assert found[""] > examples / 50
