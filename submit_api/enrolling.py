"""Workers that an administrator enrolls by their launcher's keys, and revokes. Each change and its audit event are one
transaction. How a worker joins by itself, with an invitation: `submit_api.joining`.
"""

from __future__ import annotations

from integrity.errors import ConflictError, MalformedError, NotFoundError
from integrity.fields import from_base64
from submit_api import identity
from submit_api.administering import note
from submit_api.identity import Caller, NewToken
from submit_api.issuing import issue
from submit_api.models.workers import JoinRequest, WorkerRequest
from submit_api.refusals import InvalidRequestError
from submit_api.registry import invitations, people
from submit_api.registry.records import Worker
from submit_api.service import Service
from vocabulary.keys import SealTo, VerifyKey, fingerprint


async def enroll_worker(service: Service, caller: Caller, wanted: WorkerRequest) -> NewToken:
    """Trust a launcher's keys. `fingerprint` is what its administrator read on its own host, not through the agent."""
    verify_key, sealing_key = launcher_keys(wanted)
    found = fingerprint(verify_key, sealing_key)
    if wanted.fingerprint != found:
        raise InvalidRequestError(
            f"these keys have fingerprint {found}, not the given one: compare it on the launcher's host"
        )
    worker = Worker(
        name=wanted.name,
        verify_key=verify_key.raw,
        sealing_key=sealing_key.raw,
        fingerprint=found,
        queues=sorted(set(wanted.queues)),
        created_at=service.now_us(),
        revoked_at=None,
    )
    async with service.database.write() as tx:
        earlier = await people.worker(tx, worker.name)
        if earlier is not None and earlier.revoked_at is None:
            raise ConflictError(f"worker {worker.name} is enrolled already: revoke it first, or take another name")
        await people.put_worker(tx, worker)
        made = await issue(tx, service, caller, principal=worker.name, kind=identity.WORKER, admin=False)
        detail = f"fingerprint {worker.fingerprint}, queues {', '.join(worker.queues)}"
        await note(tx, service, caller, "worker.enroll", f"worker:{worker.name}", detail)
    return made


def launcher_keys(wanted: WorkerRequest | JoinRequest) -> tuple[VerifyKey, SealTo]:
    """Raises `InvalidRequestError`."""
    try:
        verify_key = VerifyKey(from_base64(wanted.verify_key, "verify_key", max_bytes=32))
        return verify_key, SealTo(from_base64(wanted.sealing_key, "sealing_key", max_bytes=32))
    except MalformedError as error:
        raise InvalidRequestError(str(error)) from None


async def find_worker(service: Service, name: str) -> Worker:
    async with service.database.read() as tx:
        found = await people.worker(tx, name)
    if found is None:
        raise NotFoundError(f"there is no worker {name!r}")
    return found


async def revoke_worker(service: Service, caller: Caller, name: str) -> None:
    """With its tokens, its key and its invitations. What it runs now will fall silent and be lost."""
    async with service.database.write() as tx:
        if await people.worker(tx, name) is None:
            raise NotFoundError(f"there is no worker {name!r}")
        await people.revoke_worker(tx, name, service.now_us())
        await invitations.withdraw(tx, name)
        detail = "its tokens, its key and its invitations are revoked with it"
        await note(tx, service, caller, "worker.revoke", f"worker:{name}", detail)
