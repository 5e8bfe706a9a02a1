"""One running API for each test, on each database."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from api_rig import Api

from tests import postgres, s3
from tests.postgres import Server

DATABASES = ("sqlite", "postgresql")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sqlite: only there: it looks into SQLite's own file")
    config.addinivalue_line("markers", "postgresql: only there: it asks the server about its sessions")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "database" in metafunc.fixturenames:
        only = [name for name in DATABASES if metafunc.definition.get_closest_marker(name)]
        metafunc.parametrize("database", only or DATABASES, indirect=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    if missing := postgres.why_not():
        pytest.skip(missing)
    with postgres.running() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[s3.Server]:
    with s3.running() as server:
        yield server


@pytest.fixture
def bucket(s3_server: s3.Server, tmp_path: Path) -> s3.Bucket:
    return s3_server.make(str(tmp_path))


@pytest.fixture
def database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Which database every API of this test has, also one in a process of its own: the environment says so."""
    if request.param == "sqlite":
        yield request.param
        return
    server: Server = request.getfixturevalue("postgres_server")
    url = server.make()
    monkeypatch.setenv("DAGSEAL__DATABASE__URL", url)
    yield request.param
    server.drop(url)


@pytest.fixture
def folder(database: str) -> Iterator[str]:
    # A unix socket's path has at most 107 characters: pytest's own folders are too deep.
    with tempfile.TemporaryDirectory(prefix="dagseal-") as made:
        yield made


@pytest.fixture
async def api(folder: str) -> AsyncIterator[Api]:
    async with Api(folder) as running:
        yield running
