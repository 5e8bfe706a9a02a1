"""What an archive is answered while it is imported: nothing, and what it asked for is noted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow.sdk.execution_time import comms, supervisor, task_runner

from launcher.task import secrets
from launcher.task.granted import refused


class ImportTimeComms:
    """While an archive is imported: notes that a connection or variable was asked for, and refuses everything."""

    socket = None

    def send(self, msg: Any) -> Any:
        match msg:
            case comms.MaskSecret():
                return None
            case comms.GetConnection():
                secrets.note("connection", msg.conn_id)
            case comms.GetVariable() | comms.PutVariable() | comms.DeleteVariable():
                secrets.note("variable", msg.key)
            case comms.GetVariableKeys():
                secrets.note("variable", f"{msg.prefix or ''}*")
        raise refused(f"{type(msg).__name__} is not answered while the archive is imported: do it inside a task")

    async def asend(self, msg: Any) -> Any:
        return self.send(msg)


def while_importing(member_of: Callable[[str], str | None]) -> None:
    """From here on the archive's code runs: no database, no supervisor, every question noted."""
    supervisor.block_orm_access()
    task_runner.SUPERVISOR_COMMS = ImportTimeComms()
    secrets.watch_imports(member_of)
