"""Three parsers: what `zipfile` of Python 3.11 and of 3.13, and `zipimport`, read differently is refused.

`tests/vectors/archives/readings.json` holds what those of 3.11.7 and 3.13.0 make of each committed zip on which they differ,
so that this is known where only one of them is installed. The interpreter at hand, and those on PATH or in
DAGSEAL_TEST_PYTHONS, read everything anew: their patches differ, and what we accept has to be one thing for all of them.

Seen to fail when weakened: `_check_entry` without its rule for encryption, `_check_extras` that knows 0x7075, `_inflate`
without the CRC.
"""

from __future__ import annotations

import json
import pathlib
import sys

import pytest
from archive_agreement import agree, expected, other_pythons, readings

from integrity.errors import ArchiveError
from vocabulary import archives

VECTORS = pathlib.Path(__file__).parents[2] / "vectors" / "archives"
INDEX = json.loads((VECTORS / "index.json").read_text())
READINGS: dict[str, dict[str, object]] = json.loads((VECTORS / "readings.json").read_text())
ZIPS = [row["file"] for row in INDEX["good"] + INDEX["bad"] if row["name"] == "x.zip"]
SMALL = [file for file in ZIPS if (VECTORS / file).stat().st_size < 50_000]
MATTER = {  # the ways in which they are known to differ, each with one of the files
    "a wrong CRC is no matter to zipimport": "bad/crc.zip",
    "an encryption flag is no matter to zipimport": "bad/encrypted.zip",
    "two names: zipimport takes the directory's": "bad/other-local-name.zip",
    "a second name: zipfile of 3.13 takes it": "bad/unicode-path-extra.zip",
    "overlapping entries: zipfile of 3.13 refuses them": "bad/quoted-overlap.zip",
    "a NUL ends a name for zipfile": "bad/nul-name.zip",
    "a wrong count: zipimport of 3.13 refuses it": "bad/count-less.zip",
    "zip64 sizes: only zipimport of 3.13 heeds them": "bad/zip64-sizes.zip",
    "zip64 directory: zipimport of 3.11 does not see it": "bad/zip64-locator-in-extra.zip",
    "a size that lies is no matter to zipimport": "bad/stored-size.zip",
}


@pytest.mark.parametrize("file", READINGS)
def test_what_they_read_differently_is_refused(file: str) -> None:
    said = [json.dumps(reading, sort_keys=True) for reading in READINGS[file].values()]
    assert len(said) == 4 and len(set(said)) > 1
    with pytest.raises(ArchiveError):
        archives.read("x.zip", (VECTORS / file).read_bytes())


def test_each_known_difference_has_a_vector() -> None:
    assert set(MATTER.values()) <= set(READINGS)


@pytest.mark.parametrize("file", [file for file in SMALL if file.startswith("good/")])
def test_what_we_accept_is_read_alike_here(file: str, tmp_path: pathlib.Path) -> None:
    data = (VECTORS / file).read_bytes()
    agree(archives.read("x.zip", data), data, tmp_path)


@pytest.mark.parametrize("python", [sys.executable, *other_pythons()])
def test_every_vector_is_refused_or_read_alike_by(python: str) -> None:
    for file, reading in zip(SMALL, readings(python, *(VECTORS / file for file in SMALL)), strict=True):
        try:
            archive = archives.read("x.zip", (VECTORS / file).read_bytes())
        except ArchiveError:
            continue
        files = {
            parser: {name: short for name, short in said.items() if not name.endswith("/")}
            for parser, said in reading.items()
            if isinstance(said, dict)
        }
        assert files == {"zipfile": expected(archive), "zipimport": expected(archive)}, file
