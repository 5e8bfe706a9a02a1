"""An installation of Airflow as it was found on the host of one of its components, or of all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CELERY = "dagseal.airflow.SealedCeleryExecutor"
LOCAL = "dagseal.airflow.SealedLocalExecutor"
# Of what is looked at, all that one of Airflow's components reaches; with no component named, everything is looked at.
REACHES = {
    "scheduler": frozenset({"server", "database"}),
    "worker": frozenset({"tasks socket"}),
    "dag-processor": frozenset({"releases socket", "launcher socket", "database"}),
    "triggerer": frozenset({"database"}),
    "api-server": frozenset({"database"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What Airflow's database has. `processors`: of the dag processors that live, host and whether it is ours."""

    connections: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    queues: frozenset[str] = frozenset()
    processors: tuple[tuple[str, bool], ...] = ()
    triggerers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """`reached`: for each of our sockets, and the server's token, why it cannot be used, or nothing. `unguarded`: why Celery's
    workers would run whatever a message names, then the line that ends it; or nothing. `stored`: or why not. `component`: which
    of `REACHES` this host runs; empty for all."""

    version: str
    executor: str
    coordinators: Mapping[str, Any]
    by_queue: Mapping[str, str]
    default_queue: str
    bundles: tuple[tuple[str, str], ...]
    examples: bool
    unversioned: bool
    backend: str
    enforced: bool
    other_bundles: bool
    processor_timeout: int
    environment: frozenset[str]
    config_path: str
    config_mode: int | None
    reached: Mapping[str, str] = field(default_factory=dict)
    unguarded: str = ""
    stored: Stored | str = ""
    component: str = ""

    def is_reached(self, what: str) -> bool:
        """Whether what runs here needs it. Who executes locally is a worker, too."""
        if not self.component:
            return True
        local = self.component == "scheduler" and LOCAL in executors(self.executor)
        return what in REACHES[self.component] or (local and what in REACHES["worker"])


def executors(value: str) -> list[str]:
    """What `[core] executor` names, without teams and aliases."""
    return [entry.strip().rpartition(":")[2] for entry in re.split(r"[,;]", value) if entry.strip()]
