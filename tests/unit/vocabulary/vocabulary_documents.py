"""One example of each signed document, and the keys that signed it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from integrity.digests import Digest
from vocabulary.claims import Claim, Result, Xcom
from vocabulary.grants import Secrets
from vocabulary.keys import KeyRing, SealingKey, SigningKey
from vocabulary.manifest import DagEntry, Manifest, Member, TaskEntry
from vocabulary.tickets import Ticket

API = SigningKey(b"\1" * 32)
LAUNCHER = SigningKey(b"\2" * 32)
OTHER = SigningKey(b"\3" * 32)
SEALING = SealingKey(b"\4" * 32)
RING = KeyRing([API.public])
NOW = 1_800_000_000
ID = "0123456789abcdef" * 2


def task(task_id: str = "extract", **changes: Any) -> TaskEntry:
    return TaskEntry(
        **{
            "task_id": task_id,
            "digest": Digest.of(task_id.encode()),
            "operator": "PythonOperator",
            "run_as_user": "etl",
            "queue": "default",
            "connections": ("warehouse",),
            "mapped": False,
            **changes,
        }
    )


def manifest(**changes: Any) -> Manifest:
    return Manifest(
        **{
            "archive": "etl.py",
            "number": 3,
            "digest": Digest.of(b"archive"),
            "size": 7,
            "members": (Member(name="etl.py", size=7, digest=Digest.of(b"archive")),),
            "owner": "ada",
            "group": "analysts",
            "submitted_by": "ada",
            "created_at": NOW,
            "task_check": "task",
            "airflow_version": "3.3.2",
            "dags": (DagEntry(dag_id="etl", member="etl.py", tasks=(task(), task("load", run_as_user=None))),),
            **changes,
        }
    )


def ticket(**changes: Any) -> Ticket:
    return Ticket(
        **{
            "ticket_id": ID,
            "launch_id": ID,
            "audience": LAUNCHER.public.key_id,
            "queue": "default",
            "archive": "etl.py",
            "release": 3,
            "digest": Digest.of(b"archive"),
            "manifest_digest": Digest.of(b"manifest"),
            "dag_id": "etl",
            "task_id": "extract",
            "run_id": "manual__2026-11-22T00:00:00+00:00",
            "map_index": -1,
            "try_number": 1,
            "task_digest": Digest.of(b"task"),
            "unix_user": "etl",
            "rule": ID,
            "owner": "ada",
            "principal": "scheduler",
            "issued_at": NOW,
            "expires_at": NOW + 60,
            "timeout_seconds": 3600,
            **changes,
        }
    )


def claim(**changes: Any) -> Claim:
    return Claim(
        **{
            "ticket_id": ID,
            "launch_id": ID,
            "ticket_digest": Digest.of(b"ticket"),
            "task_digest": Digest.of(b"task"),
            "attestation": {"no_new_privs": True, "uid": 1000},
            "claimed_at": NOW * 1_000_000,
            **changes,
        }
    )


def result(**changes: Any) -> Result:
    return Result(
        **{
            "launch_id": ID,
            "ticket_digest": Digest.of(b"ticket"),
            "state": "success",
            "exit_code": -9,
            "error": "",
            "detail": "",
            "started_at": 1,
            "ended_at": 2,
            "timings_us": {"import": 5, "run": 6},
            "max_rss_kib": 1000,
            "log_digest": Digest.of(b"log"),
            "log_bytes": 3,
            "log_truncated": False,
            "xcoms": (Xcom(key="return_value", value="1.5"),),
            **changes,
        }
    )


def secrets(**changes: Any) -> Secrets:
    return Secrets(
        **{
            "connections": {"warehouse": "postgres://u:p@h/db"},
            "variables": {"region": "eu"},
            "xcoms": ({"task_id": "extract", "map_index": -1, "key": "return_value", "value": "1.5"},),
            "run": {"logical_date": "2026-11-22"},
            **changes,
        }
    )


@dataclass
class Flips:
    """Every single-bit change of some bytes."""

    whole: bytes
    seen: int = field(default=0)

    def __iter__(self) -> Any:
        for at in range(len(self.whole)):
            for bit in range(8):
                flipped = bytearray(self.whole)
                flipped[at] ^= 1 << bit
                self.seen += 1
                yield bytes(flipped)
