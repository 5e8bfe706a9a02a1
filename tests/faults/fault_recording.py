"""Compile the recorder, and start processes under it."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults import fault_replay
from tests.faults.fault_replay import Disk, Record

_SOURCE = Path(__file__).with_name("recorder.c")
NO_COMPILER = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc, to compile tests/faults/recorder.c")


@dataclass(frozen=True, slots=True)
class Recording:
    """The library, its log, and the folders it watches. `folder` can be reached by every account."""

    folder: Path
    roots: dict[str, Path]

    @property
    def log(self) -> Path:
        return self.folder / "recording"

    @property
    def trigger(self) -> Path:
        return self.folder / "trigger"

    @property
    def library(self) -> Path:
        return self.folder / "recorder.so"

    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(self.library),
            "DAGSEAL_RECORD_LOG": str(self.log),
            "DAGSEAL_RECORD_ROOTS": ":".join(str(path) for path in self.roots.values()),
            "DAGSEAL_RECORD_TRIGGER": str(self.trigger),
        }

    def acknowledge(self, about: Any) -> None:
        fault_replay.acknowledge(self.log, about)

    @contextmanager
    def standstill(self) -> Iterator[None]:
        """No recorded process is between a call and its record: it may be killed, and what it did is recorded."""
        with self.log.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def records(self) -> list[Record]:
        return list(fault_replay.records(self.log))

    def disk(self, *, deaf: frozenset[str] = frozenset()) -> Disk:
        return Disk({path.stat().st_ino: name for name, path in self.roots.items()}, deaf=deaf)


def recording(folder: Path, **roots: Path) -> Recording:
    """A new one. `roots` are made by whoever is recorded, or by the caller, before the first change below them."""
    made = Recording(folder, roots)
    folder.chmod(0o755)
    subprocess.run(
        [
            "gcc",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-shared",
            "-fPIC",
            "-o",
            str(made.library),
            str(_SOURCE),
            "-ldl",
            "-lpthread",
        ],
        check=True,
    )
    made.log.touch()
    made.log.chmod(0o666)
    return made
