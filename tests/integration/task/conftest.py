"""One warm process per purpose for the whole session, as the launcher keeps them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from supervisor_rig import Supervisor
from task_rig import ENVIRONMENT, Warm


@pytest.fixture(scope="session")
def runner() -> Iterator[Warm]:
    warm = Warm("run", environment=ENVIRONMENT)
    yield warm
    assert warm.close() == 0


@pytest.fixture(scope="session")
def describer() -> Iterator[Warm]:
    warm = Warm("describe", environment={"PYTHONHASHSEED": "0"})
    yield warm
    assert warm.close() == 0


@pytest.fixture(scope="session")
def supervisor() -> Iterator[Supervisor]:
    supervisor = Supervisor()
    yield supervisor
    supervisor.close()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Where the task's user may make files, which it may not in pytest's own folders."""
    folder = Path(tempfile.mkdtemp(prefix="dagseal-open-"))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)
