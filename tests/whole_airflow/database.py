"""PostgreSQL for Airflow: the server of `tests.postgres`, on loopback too, since Airflow runs as an account of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dagseal.footing import free_port
from tests import postgres
from tests.whole_airflow.network import HUB, NETWORK


class LoopbackServer(postgres.Server):
    """Room for scheduler, API server, DAG processor, triggerer and many workers; for all of `network`, if there is one."""

    address = "127.0.0.1"
    network = ""
    port = 0

    def up(self, **changed: str) -> None:
        self.port = self.port or free_port()
        listening = {"listen_addresses": self.address, "port": str(self.port), "max_connections": "300"}
        if self.network:
            rules = self.folder / "cluster" / "pg_hba.conf"
            if self.network not in rules.read_text():
                rules.write_text(f"{rules.read_text()}\nhost all all {self.network} scram-sha-256\n")
        super().up(**{**listening, **changed})

    def url(self, database: str, user: str = "postgres", password: str | None = None) -> str:
        word = self.password if password is None else password
        return f"postgresql://{user}:{word}@127.0.0.1:{self.port}/{database}"


class NetworkServer(LoopbackServer):
    """For the worker hosts too."""

    address = f"127.0.0.1,{HUB}"
    network = NETWORK


@contextmanager
def running(kind: type[LoopbackServer] = LoopbackServer) -> Iterator[LoopbackServer]:
    with postgres.running(kind) as server:
        assert isinstance(server, LoopbackServer)
        yield server
