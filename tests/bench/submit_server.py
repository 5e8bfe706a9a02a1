"""dagseal's API with everything but `describe`: the description is at hand. For `python -m tests.bench.submitting`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys

from integrity.digests import Digest
from submit_api import audit, identity, keyfiles, logging_setup
from submit_api.describing import Description
from submit_api.issuing import issue
from submit_api.running import opened, serving
from submit_api.settings import load
from vocabulary.manifest import DagEntry, TaskEntry

TASK = TaskEntry(
    task_id="t",
    digest=Digest.of(b"t"),
    operator="PythonOperator",
    run_as_user="nobody",
    queue="default",
    connections=(),
    mapped=False,
)


class AtHand:
    """One dag of the archive's name, with one task."""

    async def describe(self, name: str, digest: Digest, fd: int, task_check: str) -> Description:
        dag = DagEntry(dag_id=name.rpartition(".")[0], member=name, tasks=(TASK,))
        return Description(airflow_version="3.3.0", dags=(dag,))


async def main(folder: str) -> None:
    logging_setup.configure()
    settings = load(api={"port": 0, "state_folder": f"{folder}/state"})
    keyfiles.create(settings)
    async with opened(settings, describer=AtHand()) as service, serving(service) as listener:
        async with service.database.write() as tx:
            made = await issue(tx, service, audit.SERVICE, principal="admin", kind=identity.USER, admin=True)
        print(json.dumps({"port": listener.port, "token": made.text}), flush=True)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        await ended.wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1]))
