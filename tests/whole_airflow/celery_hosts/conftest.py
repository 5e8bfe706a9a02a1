"""In a process of its own, since it goes into a network of its own: `make e2e-celery`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.whole_airflow import accounts, database, fleet, installation, network
from tests.whole_airflow.brokers import Rabbit, Redis
from tests.whole_airflow.database import NetworkServer
from tests.whole_airflow.fleet import Broker, Fleet


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    with network.entered(), accounts.made(), installation.new_folder() as path:
        yield path


@pytest.fixture(scope="session")
def server(folder: Path) -> Iterator[NetworkServer]:
    with database.running(NetworkServer) as running:
        assert isinstance(running, NetworkServer)
        installation.migrated(running, folder)
        yield running


def _running(server: NetworkServer, folder: Path, broker: Broker) -> Iterator[Fleet]:
    broker.start()
    try:
        with fleet.running(server, folder, broker) as running:
            yield running
    finally:
        broker.stop()


@pytest.fixture(scope="session")
def on_redis(server: NetworkServer, folder: Path) -> Iterator[Fleet]:
    yield from _running(server, folder / "redis", Redis(folder / "broker-redis"))


@pytest.fixture(scope="session")
def on_rabbit(server: NetworkServer, folder: Path) -> Iterator[Fleet]:
    yield from _running(server, folder / "rabbit", Rabbit(folder / "broker-rabbit"))
