from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.airflow_rig import Agent, Airflow, Parser, migrate


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("airflow")
    migrate(home)
    return home / "airflow.db"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    found = Agent(tmp_path)
    yield found
    found.close()


@pytest.fixture
def airflow(tmp_path: Path, agent: Agent, migrated: Path) -> Airflow:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(migrated, home / "airflow.db")
    return Airflow(home, agent.socket, str(tmp_path / "launcher.sock"))


@pytest.fixture
def parser(tmp_path: Path, airflow: Airflow) -> Iterator[Parser]:
    found = Parser(tmp_path, airflow.environment)
    yield found
    found.close()
