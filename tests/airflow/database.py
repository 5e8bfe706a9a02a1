"""PostgreSQL for Airflow: the server of `tests.postgres`, on loopback too, since Airflow runs as an account of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dagseal.footing import free_port
from tests import postgres


class LoopbackServer(postgres.Server):
    """Room for scheduler, API server, DAG processor, triggerer and many workers. `address` is where it listens beside."""

    address = "127.0.0.1"
    port = 0

    def up(self, **changed: str) -> None:
        self.port = self.port or free_port()
        listening = {"listen_addresses": self.address, "port": str(self.port), "max_connections": "300"}
        super().up(**{**listening, **changed})

    def url(self, database: str, user: str = "postgres", password: str | None = None) -> str:
        word = self.password if password is None else password
        return f"postgresql://{user}:{word}@127.0.0.1:{self.port}/{database}"


@contextmanager
def running() -> Iterator[LoopbackServer]:
    with postgres.running(LoopbackServer) as server:
        assert isinstance(server, LoopbackServer)
        yield server
