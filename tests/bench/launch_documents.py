"""What the API would sign for a launch, signed here: the manifest of one release, a ticket per launch, its grant.

The DAG's first line takes the time, before anything else of the archive runs; its task fetches the one connection that
it was granted and prints that time, so that it comes back in the log.
"""

from __future__ import annotations

import base64
import re
import secrets
import time
from dataclasses import dataclass
from typing import Any

from integrity.digests import Digest
from submit_api.describing import Description
from vocabulary import archives, grants, manifest, tickets
from vocabulary.grants import Secrets
from vocabulary.keys import KeyRing, SealTo, SigningKey, VerifyKey
from vocabulary.manifest import Manifest
from vocabulary.tickets import Ticket

ARCHIVE, DAG_ID, TASK_ID = "bench_launching.py", "bench_launching", "noop"
CONNECTION, VALUE = "sales", "postgresql://reader:not-a-secret@db.example/sales"
OWNER = "bench"
TICKET_SECONDS, TIMEOUT_SECONDS = 60, 120
SOURCE = f"""\
import time; BEGIN_NS = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
import os
from airflow.sdk import DAG, task
from airflow.sdk.bases.hook import BaseHook

with DAG({DAG_ID!r}, schedule=None, catchup=False):

    @task
    def {TASK_ID}():
        host = BaseHook.get_connection({CONNECTION!r}).host
        print(f"first-instruction {{BEGIN_NS}} uid {{os.getuid()}} host {{host}}")

    {TASK_ID}()
""".encode()
_PRINTED = re.compile(rb"first-instruction (\d+) uid (\d+) host db\.example\b")


def printed(log: bytes) -> tuple[int, int]:
    """What the task printed: when its DAG's first line ran, in ns of the monotonic clock, and as whom."""
    found = _PRINTED.search(log)
    if found is None:
        raise RuntimeError(f"the task did not print its first instruction's time; its log: {log[-2000:]!r}")
    return int(found[1]), int(found[2])


def release(description: Description, key: SigningKey) -> bytes:
    """The signed manifest of the release, from the launcher's own description of it."""
    return manifest.sign(
        Manifest(
            archive=ARCHIVE,
            number=1,
            digest=Digest.of(SOURCE),
            size=len(SOURCE),
            members=archives.manifest_members(archives.read(ARCHIVE, SOURCE)),
            owner=OWNER,
            group=OWNER,
            submitted_by=OWNER,
            created_at=int(time.time()),
            task_check="task",
            airflow_version=description.airflow_version,
            dags=description.dags,
        ),
        key,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """Plays the API towards one launcher, whose public keys are `launcher` and `sealing`."""

    key: SigningKey
    manifest: bytes
    manifest_digest: Digest
    task_digest: Digest
    launcher: VerifyKey
    sealing: SealTo
    unix_user: str

    @classmethod
    def of(cls, envelope: bytes, *, key: SigningKey, identity: dict[str, Any], unix_user: str) -> Issuer:
        found = manifest.verify(envelope, KeyRing([key.public]))
        return cls(
            key=key,
            manifest=envelope,
            manifest_digest=found.digest,
            task_digest=found.manifest.task(DAG_ID, TASK_ID).digest,
            launcher=VerifyKey(base64.b64decode(identity["verify_key"])),
            sealing=SealTo(base64.b64decode(identity["sealing_key"])),
            unix_user=unix_user,
        )

    def ticket(self) -> Ticket:
        """For a launch that was never asked for before."""
        now = int(time.time())
        return Ticket(
            ticket_id=secrets.token_hex(16),
            launch_id=secrets.token_hex(16),
            audience=self.launcher.key_id,
            queue="default",
            archive=ARCHIVE,
            release=1,
            digest=Digest.of(SOURCE),
            manifest_digest=self.manifest_digest,
            dag_id=DAG_ID,
            task_id=TASK_ID,
            run_id=f"bench-{secrets.token_hex(6)}",
            map_index=-1,
            try_number=1,
            task_digest=self.task_digest,
            unix_user=self.unix_user,
            rule="0" * 32,
            owner=OWNER,
            principal=OWNER,
            issued_at=now,
            expires_at=now + TICKET_SECONDS,
            timeout_seconds=TIMEOUT_SECONDS,
        )

    def signed(self, ticket: Ticket) -> bytes:
        return tickets.sign(ticket, self.key)

    def grant(self, ticket: Ticket, claim_digest: Digest) -> bytes:
        """The one connection, and of the run what the API tells."""
        at = "2026-01-01T00:00:00+00:00"
        run = {"dag_id": ticket.dag_id, "run_id": ticket.run_id, "start_date": at, "logical_date": at}
        return grants.seal(
            Secrets(connections={CONNECTION: VALUE}, variables={}, xcoms=(), run=run),
            launch_id=ticket.launch_id,
            ticket_digest=Digest.of(ticket.to_bytes()),
            claim_digest=claim_digest,
            to=self.sealing,
            key=self.key,
        )
