"""Each stack is started once for a session, and all of them use one PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.whole_airflow import accounts, database, installation, plain, sealed
from tests.whole_airflow.comparing import Outcome, run_all, run_own
from tests.whole_airflow.database import LoopbackServer
from tests.whole_airflow.plain import Plain
from tests.whole_airflow.public import RunEnd
from tests.whole_airflow.sealed import Sealed


@pytest.fixture(scope="session")
def unix_accounts() -> Iterator[None]:
    with accounts.made():
        yield


@pytest.fixture(scope="session")
def folder(unix_accounts: None) -> Iterator[Path]:
    with installation.new_folder() as path:
        yield path


@pytest.fixture(scope="session")
def server(folder: Path) -> Iterator[LoopbackServer]:
    with database.running() as running:
        installation.migrated(running, folder)
        yield running


@pytest.fixture(scope="session")
def plain_airflow(server: LoopbackServer, folder: Path) -> Iterator[Plain]:
    with accounts.sudo(), plain.running(server, folder / "plain") as running:
        yield running


@pytest.fixture(scope="session")
def plain_outcomes(plain_airflow: Plain) -> dict[str, Outcome]:
    """What the examples end in on plain Airflow."""
    return run_all(plain_airflow.api)


@pytest.fixture(scope="session")
def plain_own(plain_airflow: Plain) -> dict[str, RunEnd]:
    return run_own(plain_airflow)


@pytest.fixture(scope="session")
def sealed_airflow(server: LoopbackServer, folder: Path) -> Iterator[Sealed]:
    with sealed.running(server, folder / "sealed") as running:
        yield running


@pytest.fixture(scope="session")
def sealed_outcomes(sealed_airflow: Sealed) -> dict[str, Outcome]:
    return run_all(sealed_airflow.api)


@pytest.fixture(scope="session")
def sealed_own(sealed_airflow: Sealed) -> dict[str, RunEnd]:
    return run_own(sealed_airflow)
