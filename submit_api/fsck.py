"""Check everything that is stored against everything else.

`damage` is what must not be; a `warning` is what a crash may leave: bytes that nothing names.

Promise: it changes nothing, but for `repair`, which removes what the warnings name and needs the service to be stopped.
Each check is independent of the code that wrote: bytes are hashed, signatures verified, ciphertexts opened.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import replace

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from integrity.digests import Digest
from integrity.errors import DigestMismatchError, MalformedError, NotFoundError, SecurityError, SettingsError
from submit_api import connections, fsck_log, fsck_sets, launches
from submit_api.audit_numbers import MAX_FINDINGS, REMOVE, Numbers
from submit_api.findings import Finding, damage, warning
from submit_api.registry import activations, archives, events, ledger, people, secrets
from submit_api.registry.database import SQLITE, Transaction
from submit_api.registry.records import Release
from submit_api.running import RESTORE_AGAIN, opened, restore_unfinished, state_lock
from submit_api.service import Service
from submit_api.settings import Settings
from vocabulary.keys import SealTo, VerifyKey, fingerprint
from vocabulary.manifest import VerifiedManifest

_HEX = re.compile(r"[0-9a-f]{128}")
_LAUNCH_ID = re.compile(r"[0-9a-f]{32}")


async def fsck(settings: Settings, *, repair: bool = False) -> list[Finding]:
    """Every finding; empty means clean. Raises `SettingsError` when there is nothing to check, or it is in use."""
    if restore_unfinished(settings):
        return [damage("restore-unfinished", settings.api.state_folder, RESTORE_AGAIN)]
    with state_lock(settings) if repair else nullcontext():
        async with opened(settings, migrating=False, sole=repair) as service:
            try:
                async with service.database.read() as tx:
                    found = await examined(service, tx)
            except SQLAlchemyError as error:
                raise SettingsError(f"the database cannot be read: {type(error).__name__}") from None
            return [await _repair(service, finding) for finding in found] if repair else found


async def examined(service: Service, tx: Transaction) -> list[Finding]:
    """The same, of what this transaction sees."""
    return [finding async for finding in _everything(service, tx)]


async def _everything(service: Service, tx: Transaction) -> AsyncIterator[Finding]:
    for finding in await _database(service, tx):
        yield finding
    for release in await archives.releases(tx):
        for finding in await _release(service, tx, release):
            yield finding
    for finding in await _archives(tx):
        yield finding
    for finding in await _secrets(service, tx):
        yield finding
    for finding in await _people(tx):
        yield finding
    for finding in await _logs(service, tx):
        yield finding
    for finding in await _audit(tx):
        yield finding
    for finding in await fsck_sets.examined(tx):
        yield finding
    async for finding in fsck_log.examined(tx, service.keys.signing.public):
        yield finding
    async for finding in _files(service, await archives.digests(tx)):
        yield finding


async def _database(service: Service, tx: Transaction) -> list[Finding]:
    """SQLite's own checks; PostgreSQL has its own."""
    if service.database.kind != SQLITE:
        return []
    found = []
    for pragma in ("integrity_check", "foreign_key_check"):
        rows = (await tx.session.execute(text(f"PRAGMA {pragma}"))).all()
        if rows and rows[0][0] != "ok":
            found.append(damage(f"sqlite-{pragma.replace('_', '-')}", "database", str(rows[0])[:500]))
    return found


async def _release(service: Service, tx: Transaction, release: Release) -> list[Finding]:
    name = f"{release.archive}@{release.number}"
    found = []
    try:
        if release.retired_at is None:  # else its bytes are gone, or, after a crash, on their way
            await service.blobs.verify(Digest.parse(release.digest))
    except NotFoundError as error:
        found.append(damage("blob-missing", name, str(error)))
    except DigestMismatchError as error:
        found.append(damage("blob-damaged", name, str(error)))
    except MalformedError as error:
        found.append(damage("release-digest", name, str(error)))
    try:
        verified = await service.manifest_of(release)
    except SecurityError as error:
        return [*found, damage("manifest-signature", name, str(error))]
    wrong = _disagreements(release, verified)
    if wrong:
        found.append(damage("manifest-disagrees", name, f"the row differs from the manifest in {', '.join(wrong)}"))
    told = {(dag.dag_id, task.task_id): str(task.digest) for dag in verified.manifest.dags for task in dag.tasks}
    if told != await archives.task_digests(tx, release.archive, release.number):
        found.append(damage("tasks-disagree", name, "the tasks on record are not those of the manifest"))
    dag_ids = [dag.dag_id for dag in verified.manifest.dags]
    owners, transferred = await archives.archives_of_dags(tx, dag_ids), await archives.transferred(tx, dag_ids)
    for dag in verified.manifest.dags:
        if owners.get(dag.dag_id) != release.archive and dag.dag_id not in transferred:
            found.append(damage("dag-owner", name, f"dag {dag.dag_id} is on record for {owners.get(dag.dag_id)}"))
    return found


def _disagreements(release: Release, verified: VerifiedManifest) -> list[str]:
    manifest = verified.manifest
    pairs = {
        "archive": (release.archive, manifest.archive),
        "number": (release.number, manifest.number),
        "size": (release.size, manifest.size),
        "owner": (release.owner, manifest.owner),
        "group": (release.group, manifest.group),
        "submitted_by": (release.submitted_by, manifest.submitted_by),
        "task_check": (release.task_check, manifest.task_check),
        "isolation": (release.isolation, manifest.isolation),
        "manifest_digest": (release.manifest_digest, str(verified.digest)),
    }
    return [name for name, (row, said) in pairs.items() if row != said]


async def _archives(tx: Transaction) -> list[Finding]:
    found = []
    for archive in await archives.listed(tx):
        listed = await archives.releases(tx, archive.name)
        numbers = [release.number for release in listed]
        unfit = {release.number for release in listed if launches.unlaunchable(release)}
        if numbers != list(range(1, archive.latest + 1)):
            found.append(damage("release-numbers", archive.name, f"latest is {archive.latest}, on record {numbers}"))
        if archive.active is not None and (archive.active not in numbers or archive.active in unfit):
            found.append(damage("active-release", archive.name, f"release {archive.active} cannot be active"))
        record = await activations.of(tx, archive.name)
        last = record[-1].number if record else None
        if archive.active not in (None, last) or archive.activation != len(record):
            found.append(damage("activation-record", archive.name, f"the record ends with release {last}"))
    return found


async def _secrets(service: Service, tx: Transaction) -> list[Finding]:
    found = []
    for secret in await secrets.listed(tx):
        try:
            connections.open_secret(service.keys.rows, secret)
        except SecurityError as error:
            found.append(damage("secret-unreadable", f"{secret.kind}:{secret.name}", str(error)))
    for xcom in await ledger.all_xcoms(tx):
        try:
            connections.open_xcom(service.keys.rows, xcom)
        except SecurityError as error:
            subject = f"xcom:{xcom.dag_id}/{xcom.run_id}/{xcom.task_id}/{xcom.map_index}/{xcom.key}"
            found.append(damage("xcom-unreadable", subject, str(error)))
    return found


async def _people(tx: Transaction) -> list[Finding]:
    found = []
    workers = {worker.name: worker for worker in await people.workers(tx)}
    for worker in workers.values():
        try:
            agrees = fingerprint(VerifyKey(worker.verify_key), SealTo(worker.sealing_key)) == worker.fingerprint
        except SecurityError:
            agrees = False
        if not agrees:
            found.append(damage("worker-key", worker.name, "the key on record has another fingerprint"))
        if worker.request_key_id != (VerifyKey(worker.request_key).key_id if worker.request_key is not None else None):
            found.append(damage("worker-request-key", worker.name, "the request key on record has another id"))
    for token in await people.tokens(tx):
        if token.kind not in ("user", "worker") or not _HEX.fullmatch(token.secret_hash):
            found.append(damage("token-row", token.token_id, "its kind or hash is not one"))
        elif token.kind == "worker" and (token.admin or token.principal not in workers):
            found.append(damage("token-row", token.token_id, "a worker's token without a worker, or with admin rights"))
        elif token.kind == "worker" and token.revoked_at is None and workers[token.principal].request_key is not None:
            found.append(damage("worker-token", token.principal, f"token {token.token_id} is good beside its own key"))
    for state in await ledger.counts_by_state(tx):
        if state not in launches.TRANSITIONS:
            found.append(damage("launch-state", state, "no launch can be in this state"))
    return found


async def _audit(tx: Transaction) -> list[Finding]:
    """Numbers that are missing without an event that says so. A row that was changed in its place does not show here."""
    numbers = Numbers()
    for before, seq in await events.jumps(tx, MAX_FINDINGS):
        numbers.jump(before, seq)
    for about in await events.objects(tx, REMOVE):
        numbers.removed(about)
    return [damage("audit-gap", "audit", finding) for finding in numbers.findings()]


async def _logs(service: Service, tx: Transaction) -> list[Finding]:
    """A log file may be longer than its launch says (a crash), never shorter."""
    sizes = await asyncio.to_thread(service.logs.sizes)
    found = []
    for launch_id, held in (await ledger.log_sizes(tx)).items():
        if sizes.get(launch_id, 0) < held:
            found.append(damage("log-short", launch_id, f"{sizes.get(launch_id, 0)} of {held} bytes are there"))
    for name in sizes:
        if not _LAUNCH_ID.fullmatch(name) or await ledger.find(tx, name) is None:
            found.append(warning("log-dangling", name, "a log of no launch"))
    return found


async def _files(service: Service, known: set[str]) -> AsyncIterator[Finding]:
    for name in await service.blobs.leftovers():
        yield warning("temporary-file", name, "an upload that did not end")
    async for folder, name in service.blobs.names():
        if not _HEX.fullmatch(name) or folder != name[:2]:
            yield damage("foreign-file", f"{folder}/{name}", "this is not the name of a blob")
        elif f"sha512:{name}" not in known:
            yield warning("blob-dangling", f"sha512:{name}", "no release has these bytes")


async def _repair(service: Service, finding: Finding) -> Finding:
    match finding.rule:
        case "blob-dangling":
            await service.blobs.remove(Digest.parse(finding.subject))
        case "temporary-file":
            await service.blobs.sweep()
        case "log-dangling" if _LAUNCH_ID.fullmatch(finding.subject):
            await asyncio.to_thread(service.logs.remove, finding.subject)
        case _:
            return finding
    return replace(finding, repaired=True)
