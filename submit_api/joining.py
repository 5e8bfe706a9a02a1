"""Workers that join with an invitation, and from then on sign what they ask (`submit_api.signed`).

An invitation is a token for one worker's name and queues, and for one launcher by its fingerprint: it is that which keeps
grants from being sealed to somebody else, so without it an invitation is called unsafe. It is good once, and not for long. A
new one takes the place of an older one of the same name.

Promise: in one transaction the invitation is used up, the worker is on record with all its keys, its bearer tokens are revoked
and the event is written; a refusal changes nothing. Of two that race one wins. Whoever did not hear the answer asks again with
the same keys and is told the same, as long as they are the worker's. Nobody joins with a key that he does not have: the request
is signed by it.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from integrity.errors import ConflictError, MalformedError
from integrity.fields import from_base64
from submit_api import administering, enrolling, identity, signed
from submit_api.effects import MICROSECONDS
from submit_api.identity import Caller, NewToken
from submit_api.models.workers import InvitationRequest, JoinRequest
from submit_api.refusals import InvalidRequestError, JoinTokenError, RequestSignatureError, UnauthenticatedError
from submit_api.registry import invitations, people
from submit_api.registry.database import Transaction
from submit_api.registry.records import Invitation, Worker
from submit_api.service import Service
from vocabulary.keys import VerifyKey, fingerprint
from vocabulary.signedrequests import Claimed

KEPT_US = 7 * 86_400 * MICROSECONDS
_AGAIN = "ask an administrator for a new invitation"


async def invite(service: Service, caller: Caller, name: str, wanted: InvitationRequest) -> tuple[Invitation, NewToken]:
    """A token for this worker. One that is enrolled stays what it is until somebody joins with it."""
    if (wanted.fingerprint is None) != wanted.unsafe_any_launcher:
        raise InvalidRequestError("give the launcher's fingerprint, as its own host shows it, or unsafe_any_launcher")
    now, made = service.now_us(), identity.create(service.randomness, identity.JOIN_PREFIX)
    invitation = Invitation(
        token_id=made.token_id,
        worker=name,
        queues=sorted(set(wanted.queues)),
        fingerprint=wanted.fingerprint or "",
        secret_hash=made.secret_hash,
        created_at=now,
        created_by=caller.principal,
        expires_at=now + wanted.seconds * MICROSECONDS,
    )
    async with service.database.write() as tx:
        await invitations.forget(tx, now - KEPT_US)
        await invitations.withdraw(tx, name)
        await invitations.add(tx, invitation)
        launcher = f"launcher {wanted.fingerprint}" if wanted.fingerprint else "unsafe: any launcher"
        detail = (
            f"token {made.token_id} for {wanted.seconds} seconds, {launcher}, queues {', '.join(invitation.queues)}"
        )
        await administering.note(tx, service, caller, "worker.invite", f"worker:{name}", detail)
    return invitation, made


async def join(service: Service, claimed: Claimed, name: str, wanted: JoinRequest, address: str) -> tuple[Worker, bool]:
    """The worker, and whether this made it what it is. Raises `JoinTokenError`, what `signed.accept` does,
    `InvalidRequestError`, `ConflictError`."""
    token_id, secret = _token(wanted.token)
    async with service.database.read() as tx:
        await _invited(service, tx, name, token_id, secret)
    request_key = _request_key(wanted.request_key)
    verify_key, sealing_key = enrolling.launcher_keys(wanted)
    if claimed.key_id != request_key.key_id:
        raise RequestSignatureError("who joins signs with the key that it joins with")
    signed.accept(service, claimed, request_key)
    keys = Worker(
        name=name,
        verify_key=verify_key.raw,
        sealing_key=sealing_key.raw,
        fingerprint=fingerprint(verify_key, sealing_key),
        queues=[],
        created_at=service.now_us(),
        revoked_at=None,
        request_key=request_key.raw,
        request_key_id=request_key.key_id,
    )
    async with service.database.write() as tx:
        invitation = await _invited(service, tx, name, token_id, secret)
        earlier = await people.worker(tx, name)
        if invitation.used_at is not None:
            if (
                earlier is not None
                and earlier.revoked_at is None
                and _digest(earlier) == _digest(keys) == invitation.used_by
            ):
                return earlier, False
            raise JoinTokenError(f"invitation {token_id} was used already: {_AGAIN}", token_id)
        await _require_open(service, tx, invitation, keys)
        worker = replace(keys, queues=invitation.queues)
        await people.put_worker(tx, worker)
        await people.revoke_tokens(tx, service.now_us(), worker=name)
        await invitations.use(tx, token_id, _digest(worker), service.now_us())
        caller = identity.worker(name, request_key.key_id, address)
        detail = f"invitation {token_id}, {_says(worker)}, queues {', '.join(worker.queues)}{_replaced(earlier)}"
        await administering.note(tx, service, caller, "worker.join", f"worker:{name}", detail)
    return worker, True


def _token(text: str) -> tuple[str, str]:
    try:
        return identity.read(text, identity.JOIN_PREFIX)
    except UnauthenticatedError as error:
        raise JoinTokenError(str(error)) from None


async def _invited(service: Service, tx: Transaction, name: str, token_id: str, secret: str) -> Invitation:
    """The invitation that this token is of. Raises `JoinTokenError`, which tells who does not have it nothing of it."""
    found = await invitations.find(tx, token_id)
    if not identity.opens(secret, found.secret_hash if found else None) or found is None:
        raise JoinTokenError(f"this token invites nobody here: {_AGAIN}", token_id)
    if found.worker != name:
        raise JoinTokenError(f"invitation {token_id} is for another worker than {name}", token_id)
    return found


async def _require_open(service: Service, tx: Transaction, invitation: Invitation, keys: Worker) -> None:
    """Raises `JoinTokenError` or `ConflictError` unless a worker with these keys joins by it now."""
    token_id = invitation.token_id
    if service.now_us() >= invitation.expires_at:
        raise JoinTokenError(f"invitation {token_id} has expired: {_AGAIN}", token_id)
    if invitation.fingerprint not in ("", keys.fingerprint):
        raise JoinTokenError(f"invitation {token_id} is for another launcher than that of {keys.fingerprint}", token_id)
    if await people.holder(tx, str(keys.request_key_id)) not in (None, keys.name):
        raise ConflictError("this request key is another worker's: make one for each")


def _request_key(text: str) -> VerifyKey:
    try:
        return VerifyKey(from_base64(text, "request_key", max_bytes=32))
    except MalformedError as error:
        raise InvalidRequestError(str(error)) from None


def _digest(worker: Worker) -> str:
    """What stands for a worker's keys together."""
    keys = (worker.request_key or b"", worker.verify_key, worker.sealing_key)
    return hashlib.sha512(b"dagseal/join/v1\n" + b"".join(keys)).hexdigest()


def _says(worker: Worker) -> str:
    return f"key {worker.request_key_id or 'none, but bearer tokens'}, launcher {worker.fingerprint}"


def _replaced(earlier: Worker | None) -> str:
    return "" if earlier is None or earlier.revoked_at is not None else f"; in place of {_says(earlier)}"
