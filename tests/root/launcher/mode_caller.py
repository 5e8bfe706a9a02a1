"""`python mode_caller.py`: one real launch by a launcher of whatever mode, as the account that runs this.

The first line of stdin is a JSON object: `socket` or `command` (how the launcher is reached), `api_key` (the seed that signs),
`launcher_pid`, `users` (a launch for each), `hold` (to grant nothing and stay). A line of JSON comes back: what the launcher
says of itself, and of each launch its attestation, its result and what the task found out about itself and could do.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import sys
import time
from typing import Any

from integrity import messages
from integrity.digests import Digest
from integrity.errors import FetchError
from tests.attacks.attacker import opened
from vocabulary import archives, claims, grants, logrecords, manifest, tickets
from vocabulary.keys import KeyRing, SealTo, SigningKey, VerifyKey
from vocabulary.manifest import DagEntry, Manifest
from vocabulary.tickets import Ticket
from worker_cache import framing, launcher_link
from worker_cache.launchers import AtSocket, OnDemand

ARCHIVE, DAG_ID, TASK_ID = "mode_probe.py", "mode_probe", "probe"
SECRET = "postgresql://reader:granted-to-this-task@db.example/sales"
_SECONDS = 120
# Written by the task: what it is, and what it can still do. Each try is answered with the error's name, or with "done".
SOURCE = """
from airflow.sdk import DAG, task

def look(launcher_pid):
    import ctypes, errno, os, signal
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/status") as file:
        status = {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
    descriptors = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            descriptors[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            pass  # the listing's own
    found = {
        "uids": os.getresuid(), "gids": os.getresgid(), "groups": sorted(os.getgroups()),
        "dumpable": libc.prctl(3, 0, 0, 0, 0), "descriptors": descriptors, "environment": dict(os.environ),
        **{name: status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")},
    }
    def attempt(what):
        try:
            what()
        except OSError as error:
            return errno.errorcode[error.errno]
        return "done"
    def trace():
        if libc.ptrace(0x4206, launcher_pid, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "ptrace")
    ways = {
        "setresuid(0)": lambda: os.setresuid(0, 0, 0), "seteuid(0)": lambda: os.seteuid(0), "setuid(0)": lambda: os.setuid(0),
        "setgid(0)": lambda: os.setgid(0), "setgroups([0])": lambda: os.setgroups([0]),
        "become another": lambda: os.setresuid(1, 1, 1),
        "read /etc/shadow": lambda: open("/etc/shadow").read(),
        "signal the launcher": lambda: os.kill(launcher_pid, signal.SIGTERM), "trace the launcher": trace,
    }
    return {**found, "tries": {name: attempt(way) for name, way in ways.items()}}

with DAG("mode_probe", schedule=None, catchup=False):

    @task
    def probe():
        import json
        from airflow.sdk.bases.hook import BaseHook
        host = BaseHook.get_connection("sales").host
        print("looked " + json.dumps({"granted": host, **look(LAUNCHER_PID)}))

    probe()
"""


class Caller:
    """Signs as the API would, and speaks to the launcher as agent and API would."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._key = SigningKey(bytes.fromhex(told["api_key"]))
        self._pid, self._source = told["launcher_pid"], b""
        self._hold = told["hold"]
        command = told.get("command")
        self.launcher = OnDemand(command) if command else AtSocket(told["socket"])

    async def all(self, users: list[str]) -> dict[str, Any]:
        async with launcher_link.connect(self.launcher) as link:
            identity = await link.identity()
        started = self.launcher.pid if isinstance(self.launcher, OnDemand) else None
        self._source = SOURCE.replace("LAUNCHER_PID", str((started and child_of(started)) or self._pid)).encode()
        try:
            described = await self._describe()
        except FetchError as error:
            return {"privileged": identity.privileged, "warnings": identity.warnings, "described": str(error)}
        if described["kind"] != "described":
            return {"privileged": identity.privileged, "warnings": identity.warnings, "described": described}
        envelope = self._release(described)
        launches = {user: await self._launch(user, envelope, identity) for user in users}
        return {"privileged": identity.privileged, "warnings": identity.warnings, "launches": launches}

    async def _describe(self) -> dict[str, Any]:
        words = {"name": ARCHIVE, "digest": str(Digest.of(self._source)), "task_check": "task"}
        with opened(self._source) as fd:
            async with launcher_link.connect(self.launcher) as link:
                await link._send(messages.encode("describe", fds=1, **words), fd)
                said = await framing.receive(link._sock)
                return {"kind": said.kind, **{key: said.fields.take(key) for key in said.fields.keys()}}

    def _release(self, described: dict[str, Any]) -> bytes:
        return manifest.sign(
            Manifest(
                archive=ARCHIVE,
                number=1,
                digest=Digest.of(self._source),
                size=len(self._source),
                members=archives.manifest_members(archives.read(ARCHIVE, memoryview(self._source))),
                owner="tests",
                group="tests",
                submitted_by="tests",
                created_at=int(time.time()),
                task_check="task",
                airflow_version=described["airflow_version"],
                dags=tuple(DagEntry.from_json(item) for item in described["dags"]),
            ),
            self._key,
        )

    def _ticket(self, user: str, envelope: bytes, launcher: VerifyKey) -> Ticket:
        found, now = manifest.verify(envelope, KeyRing([self._key.public])), int(time.time())
        return Ticket(
            ticket_id=secrets.token_hex(16),
            launch_id=secrets.token_hex(16),
            audience=launcher.key_id,
            queue="default",
            archive=ARCHIVE,
            release=1,
            digest=Digest.of(self._source),
            manifest_digest=found.digest,
            dag_id=DAG_ID,
            task_id=TASK_ID,
            run_id="r",
            map_index=-1,
            try_number=1,
            task_digest=found.manifest.task(DAG_ID, TASK_ID).digest,
            unix_user=user,
            rule="0" * 32,
            owner="tests",
            principal="tests",
            issued_at=now,
            expires_at=now + _SECONDS,
            timeout_seconds=_SECONDS,
        )

    async def _launch(self, user: str, envelope: bytes, identity: launcher_link.Identity) -> dict[str, Any]:
        ticket = self._ticket(user, envelope, identity.verify_key)
        log, report = b"", dict[str, Any]()
        with opened(self._source) as fd:
            async with launcher_link.connect(self.launcher) as link:
                await link.run(ticket=tickets.sign(ticket, self._key), manifest=envelope, archive_fd=fd)
                while True:
                    match await link.event():
                        case launcher_link.ClaimMade(envelope=made):
                            claim = claims.verify_claim(made, identity.verify_key)
                            report["attestation"] = claim.claim.attestation
                            if self._hold:
                                print("claimed", flush=True)
                                await asyncio.Event().wait()
                            await link.grant(self._grant(ticket, claim.digest, identity.sealing_key))
                        case launcher_link.Log(data=data):
                            log += data
                        case launcher_link.Refused(error=error, detail=detail):
                            return report | {"state": "refused", "error": error, "detail": detail}
                        case launcher_link.Ended(envelope=signed):
                            break
        result = claims.verify_result(signed, identity.verify_key).result
        report |= {"state": result.state, "error": result.error, "detail": result.detail, "exit_code": result.exit_code}
        log = logrecords.text_of(log)
        looked = re.search(rb"looked (\{.*\})", log)
        return report | ({"task": json.loads(looked[1])} if looked else {"log": log.decode("utf-8", "replace")[-4000:]})

    def _grant(self, ticket: Ticket, claim_digest: Digest, to: SealTo) -> bytes:
        at = "2026-01-01T00:00:00+00:00"
        run = {"dag_id": ticket.dag_id, "run_id": ticket.run_id, "start_date": at, "logical_date": at}
        return grants.seal(
            grants.Secrets(connections={"sales": SECRET}, variables={}, xcoms=(), run=run),
            launch_id=ticket.launch_id,
            ticket_digest=Digest.of(ticket.to_bytes()),
            claim_digest=claim_digest,
            to=to,
            key=self._key,
        )


def child_of(pid: int) -> int:
    """The launcher that sudo started."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return int(file.read().split()[0])


async def main() -> None:
    told = json.loads(sys.stdin.readline())
    caller = Caller(told)
    try:
        print(json.dumps({"uid": os.getuid(), **await caller.all(told["users"])}), flush=True)
    finally:
        await caller.launcher.close()


if __name__ == "__main__":
    asyncio.run(main())
