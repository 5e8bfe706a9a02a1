"""Archives: each hostile vector is refused by its rule; whatever is accepted, `zipfile` and `zipimport` read alike."""

from __future__ import annotations

import importlib.util
import io
import json
import pathlib
import tokenize
import tomllib
import tracemalloc
import zipfile
import zlib

import pytest
from archive_agreement import agree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integrity.digests import Digest
from integrity.errors import ArchiveError, InvalidArchiveError, MalformedError, UnsafeArchiveError
from vocabulary import archiverules, archives, membernames, sources, zipwriter
from vocabulary.limits import Limits

VECTORS = pathlib.Path(__file__).parents[2] / "vectors" / "archives"
INDEX = json.loads((VECTORS / "index.json").read_text())
DAG = b"from airflow.sdk import DAG\n"


def bytes_of(row: dict) -> bytes:
    return (VECTORS / row["file"]).read_bytes()


def refusal(name: str, data: bytes, limits: Limits = archives.DEFAULT) -> ArchiveError:
    with pytest.raises(ArchiveError) as caught:
        archives.read(name, data, limits)
    with pytest.raises(ArchiveError) as again:
        archives.read_digests(name, data, limits)
    assert (again.value.rule, again.value.entry) == (caught.value.rule, caught.value.entry)
    return caught.value


@pytest.mark.parametrize("row", INDEX["bad"], ids=lambda row: row["file"])
def test_hostile_vector(row: dict) -> None:
    error = refusal(row["name"], bytes_of(row))
    assert (error.rule, error.entry) == (row["rule"], row["entry"])
    assert isinstance(error, InvalidArchiveError if error.rule in INVALID else UnsafeArchiveError)
    assert error.entry.isprintable() and str(error).isprintable()


INVALID = {"no-dag-found", "unsupported-media-type"}


@pytest.mark.parametrize("row", INDEX["good"], ids=lambda row: row["file"])
def test_good_vector(row: dict) -> None:
    archive = archives.read(row["name"], memoryview(bytes_of(row)))
    assert [member.name for member in archive.members] == row["members"]
    assert archive.kind == row["name"].rpartition(".")[2]
    assert archives.read_digests(row["name"], bytes_of(row)) == archives.manifest_members(archive)
    assert [(m.name, m.size, m.digest) for m in archives.manifest_members(archive)] == [
        (m.name, len(m.data), Digest.of(m.data)) for m in archive.members
    ]


def test_every_vector_file_is_in_the_index() -> None:
    files = {f"{kind}/{path.name}" for kind in ("bad", "good") for path in (VECTORS / kind).iterdir()}
    assert files == {row["file"] for kind in ("bad", "good") for row in INDEX[kind]}
    assert {row["rule"] for row in INDEX["bad"]} >= archiverules.TOO_LARGE_RULES


GOOD_ZIPS = [row for row in INDEX["good"] if row["name"] == "x.zip"]


@pytest.mark.parametrize("row", GOOD_ZIPS, ids=lambda row: row["file"])
def test_every_flipped_bit_is_refused_or_read_alike(row: dict, tmp_path: pathlib.Path) -> None:
    whole = bytes_of(row)
    (tmp_path / "whole").mkdir()
    agree(archives.read("x.zip", whole), whole, tmp_path / "whole")
    accepted = 0
    for at in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << bit
            try:
                archive = archives.read("x.zip", bytes(flipped))
            except ArchiveError:
                continue
            folder = tmp_path / f"{at}-{bit}"
            folder.mkdir()
            agree(archive, bytes(flipped), folder)
            accepted += 1
    assert accepted < len(whole) * 8 / 3  # times, attributes and who made it are not content


@pytest.mark.parametrize("row", GOOD_ZIPS, ids=lambda row: row["file"])
def test_every_cut_and_every_insertion_is_refused(row: dict) -> None:
    whole = bytes_of(row)
    for at in range(len(whole)):
        refusal("x.zip", whole[:at])
        refusal("x.zip", whole[:at] + b"\0" + whole[at:])
        refusal("x.zip", whole[:at] + whole[at + 1 :])
    refusal("x.zip", whole + b"\0")
    refusal("x.zip", whole + whole)


file_names = st.from_regex(r"([a-zé_]{1,6}/){0,3}[a-zé_]{1,8}\.(txt|sql|yaml)", fullmatch=True)
file_sets = st.dictionaries(file_names, st.binary(max_size=300), max_size=8).map(lambda files: files | {"etl.py": DAG})


@given(file_sets)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_packed_files_come_back(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    packed = zipwriter.pack(files)
    try:
        archive = archives.read("x.zip", packed)
    except UnsafeArchiveError as error:
        assert error.rule in {"zip-unicode-collision", "zip-reserved-name", "zip-path-conflict"}
        return
    assert {member.name: member.data for member in archive.members} == files
    assert zipwriter.pack(dict(reversed(files.items()))) == packed
    agree(archive, packed, tmp_path_factory.mktemp("zip"))


@given(st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_spliced_archives_are_refused_or_read_alike(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rows = st.sampled_from(
        [row for row in INDEX["good"] + INDEX["bad"] if (VECTORS / row["file"]).stat().st_size < 2000]
    )
    one, two = bytes_of(data.draw(rows)), bytes_of(data.draw(rows))
    mixed = one[: data.draw(st.integers(0, len(one)))] + two[data.draw(st.integers(0, len(two))) :]
    try:
        archive = archives.read("x.zip", mixed)
    except ArchiveError:
        return
    agree(archive, mixed, tmp_path_factory.mktemp("zip"))


@given(st.binary(max_size=200))
def test_any_bytes_get_an_answer(data: bytes) -> None:
    for name in ("x.zip", "x.py"):
        try:
            archives.read(name, data)
        except ArchiveError as error:
            assert error.rule


def test_pack_has_one_answer() -> None:
    packed = zipwriter.pack({"b.sql": b"select 1", "a.py": DAG})
    assert (
        packed[:30].hex()
        == "504b0304140000000000000021"
        + "00"
        + zlib.crc32(DAG).to_bytes(4, "little").hex()
        + (len(DAG).to_bytes(4, "little") * 2).hex()
        + "04000000"
    )
    with zipfile.ZipFile(io.BytesIO(packed)) as read:
        assert [(i.filename, i.date_time, i.external_attr >> 16) for i in read.infolist()] == [
            ("a.py", (1980, 1, 1, 0, 0, 0), 0o100644),
            ("b.sql", (1980, 1, 1, 0, 0, 0), 0o100644),
        ]


def test_pack_refuses_what_no_archive_may_hold() -> None:
    with pytest.raises(UnsafeArchiveError) as caught:
        zipwriter.pack({f"{n}.txt": b"" for n in range(1001)})
    assert caught.value.rule == "zip-too-many-entries"
    large = bytes(32 << 20)
    with pytest.raises(UnsafeArchiveError) as caught:
        zipwriter.pack({"a": large, "b": large, "c": b"1"})
    assert caught.value.rule == "zip-expanded-too-large"
    with pytest.raises(UnsafeArchiveError) as caught:
        zipwriter.pack({"a" * 256: b""})
    assert caught.value.rule == "zip-name-too-long"


def test_limits_are_the_callers() -> None:
    packed = zipwriter.pack({"a.py": b"x = 1\n" * 10, "b/c.txt": bytes(1000)})
    cases = {
        "zip-too-many-entries": Limits(max_members=1),
        "zip-expanded-too-large": Limits(max_member_bytes=999),
        "source-too-large": Limits(max_source_bytes=59),
        "line-too-long": Limits(max_line_bytes=4),
        "zip-name-too-long": Limits(max_depth=1),
    }
    for rule, limits in cases.items():
        assert refusal("x.zip", packed, limits).rule == rule
    assert refusal("x.zip", packed, Limits(max_total_bytes=1059)).rule == "zip-expanded-too-large"
    assert refusal("x.zip", packed, Limits(max_ratio=2, ratio_from_bytes=10)).rule == "zip-expanded-too-large"
    assert refusal("x.zip", packed, Limits(max_name_bytes=4)).rule == "zip-name-too-long"
    archives.read("x.zip", packed, Limits(max_members=2, max_member_bytes=1000, max_total_bytes=1060, max_depth=2))


def test_a_lying_bomb_costs_what_it_declares() -> None:
    bomb = (VECTORS / "bad/bomb-that-lies.zip").read_bytes()
    tracemalloc.start()
    refusal("x.zip", bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_archive_name_is_checked_first() -> None:
    for name in ("../x.py", "x.tar", "x", "", "x.py\n", "a/b.py"):
        with pytest.raises(MalformedError):
            archives.read(name, DAG)


@pytest.mark.parametrize(
    "name", ["etl.py", "a/b.py", "pkg/os.py", "json/a.json", "sql/os.sql", "..a/b", "a b.txt", "日本.py"]
)
def test_ordinary_member_names(name: str) -> None:
    membernames.check(name)
    membernames.check_together([name])
    membernames.check_modules([name])


def test_no_archive_has_a_module_named_like_a_package_of_ours() -> None:
    project = tomllib.loads((pathlib.Path(__file__).parents[3] / "pyproject.toml").read_text())
    for package in project["tool"]["importlinter"]["root_packages"]:
        for name in (f"{package}.py", f"{package}/x.py"):
            with pytest.raises(UnsafeArchiveError) as caught:
                membernames.check_modules([name])
            assert (caught.value.rule, caught.value.entry) == ("shadows-module", name)


def test_folders_may_be_listed_or_not() -> None:
    membernames.check_together(["a/", "a/b/c", "a/b/", "a/d"])


def test_airflows_own_examples_are_accepted() -> None:
    airflow = importlib.util.find_spec("airflow")
    if airflow is None or airflow.origin is None:
        pytest.skip("apache-airflow is not installed")
    folder = pathlib.Path(airflow.origin).parent / "example_dags"
    files = [path for path in folder.rglob("*.py") if path.stat().st_size]
    assert len(files) > 40
    for path in files:
        archives.read(path.name, path.read_bytes())


@given(st.text(max_size=60))
def test_an_accepted_source_reads_the_same_everywhere(text: str) -> None:
    source = text.encode("utf-8", "surrogatepass")
    try:
        sources.check("x.py", source)
    except UnsafeArchiveError as error:
        assert error.rule.startswith("source-")
        return
    encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    assert encoding in ("utf-8", "utf8") or encoding.lower().replace("_", "-") == "utf-8"
    assert source.replace(b"\r\n", b"\n").count(b"\r") == 0
