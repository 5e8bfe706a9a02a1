"""verify: is this what was submitted? The numbered checks are printed; 0 all hold, 1 one fails, 3 it cannot be known.

What is verified is one of: an archive (a file, a folder, stdin, or the server's copy), with the server or with a proof file; an
agent's cache; all workers, by their reports; the server's whole log.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

from dagseal.cli import printing, proving
from dagseal.cli.context import Run, run_of
from dagseal.cli.exits import NotVerifiedError, UsageError, VerificationFailedError

if TYPE_CHECKING:
    from dagseal.cli.verification import Evidence
    from vocabulary.keys import VerifyKey
    from worker_cache.client import Client


def register(app: typer.Typer) -> None:
    app.command()(verify)


def verify(
    ctx: typer.Context,
    target: str | None = typer.Argument(None, metavar="[PATH|NAME[@N]|-]"),
    name: str | None = typer.Option(None, "--name", help="The archive that PATH or stdin is to be."),
    proof: str | None = typer.Option(
        None, "--proof", metavar="FILE", help="Verify PATH by this proof file, without the server: see dagseal proof."
    ),
    cache: str | None = typer.Option(
        None, "--cache", metavar="DIR", help="Check every blob of an agent's cache instead."
    ),
    workers: bool = typer.Option(False, "--workers", help="Whether every worker holds what it should, as they say."),
    server_log: bool = typer.Option(
        False, "--server-log", help="Check the server's whole log instead, and every release that you may read."
    ),
    expect_owner: str | None = typer.Option(None, "--expect-owner", metavar="NAME", help="Whose it is to be."),
    require_author: str | None = typer.Option(
        None, "--require-author", metavar="FILE", help="It is to be signed by an author of this authors_file."
    ),
    trust_root: str | None = typer.Option(
        None, "--trust-root", metavar="FILE", help="The API's public key or keys, base64 or hex, one a line."
    ),
    api_key: str | None = typer.Option(None, "--api-key", help="The API's public key, base64 (or api_key in [cli])."),
    unsafe_trust_server: bool = typer.Option(
        False, "--unsafe-trust-server", help="Do not check signatures: believe what the server says is recorded."
    ),
) -> None:
    """Compare bytes with what was recorded, signed and logged; say each check that was made, and each that was not.

    PATH: a file or folder here. NAME: what the server would send to a worker. --cache: what a worker has.
    """
    run = run_of(ctx)
    if [target is not None, cache is not None, workers, server_log].count(True) != 1:
        raise UsageError("say what to verify: PATH, NAME, -, --cache DIR, --workers or --server-log")
    if target is None and (name, proof, expect_owner, require_author) != (None,) * 4:
        raise UsageError("--name, --proof, --expect-owner and --require-author go with PATH, NAME or -")
    if cache is not None:
        _cache(run, cache)
        return
    if workers:
        _workers(run)
        return
    keys = None
    if not (unsafe_trust_server and (trust_root or api_key or run.settings.api_key) is None):
        keys = proving.trusted(run, trust_root, api_key)
    if target is None:
        _server_log(run, keys)
        return
    if proof is not None and keys is None:
        raise UsageError("a proof file is worth nothing without a key: use --trust-root FILE")
    evidence = _offline(target, name, proof) if proof is not None else _online(run, target, name, keys)
    _archive(run, evidence, keys, expect_owner, require_author)


def _archive(
    run: Run, evidence: Evidence, keys: list[VerifyKey] | None, owner: str | None, authors_file: str | None
) -> None:
    from dagseal.cli import report, secret_input
    from dagseal.cli.verification import judge
    from worker_cache import authors

    asked = authors.parse(secret_input.read_bytes(authors_file), authors_file) if authors_file is not None else None
    report.tell(run, judge(evidence, keys, owner=owner, authors=asked))
    if keys is None:
        run.note("the signature was not checked (--unsafe-trust-server): this is the server's word only")


def _offline(target: str, name: str | None, proof: str) -> Evidence:
    from dagseal.cli import archive_input
    from dagseal.cli.verification import Evidence
    from integrity.errors import MalformedError
    from vocabulary.proofs import MAX_PROOF_BYTES, Proof

    named = archive_input.read(target, name)
    try:
        with open(proof, "rb") as file:
            found = Proof.from_bytes(file.read(MAX_PROOF_BYTES + 1))
    except OSError as error:
        raise NotVerifiedError(f"the proof file {proof} cannot be read: {error.strerror}") from None
    except MalformedError as error:
        raise VerificationFailedError(f"{proof} is no proof file: {error}") from None
    return Evidence(name=named.name, data=named.data, proof=found)


def _online(run: Run, target: str, name: str | None, keys: list[VerifyKey] | None) -> Evidence:
    """Everything that the rules need, gathered: nothing is judged here."""
    from dagseal.cli import archive_input
    from dagseal.cli.commands.archives import reference
    from dagseal.cli.verification import Evidence
    from integrity.errors import DagsealError, NotFoundError

    now, named = int(time.time()), None
    try:
        if target == "-" or os.path.exists(target):
            named = archive_input.read(target, name)
            read = named
            found = run.call(lambda client: _of_bytes(client, read.name, read.data, proved=keys is not None))
        else:
            archive, number = reference(target)
            found = run.call(lambda client: _of_server(client, archive, number, proved=keys is not None))
    except (UsageError, NotFoundError, VerificationFailedError):
        raise
    except DagsealError as error:
        if named is None:
            raise NotVerifiedError(f"it could not be verified: {error}") from None
        return Evidence(name=named.name, data=named.data, missing=str(error))
    return replace(found, now=now)


async def _of_bytes(client: Client, name: str, data: bytes, *, proved: bool) -> Evidence:
    """Compared with the release of these bytes, else with the active one, else with the newest."""
    from dagseal.cli import pages
    from dagseal.cli.commands.archives import find_release
    from dagseal.cli.verification import Evidence
    from integrity.digests import Digest
    from integrity.errors import NotFoundError

    digest = str(Digest.of(data))
    try:
        same = [one for one in await pages.releases(client, name, digest=digest) if one["digest"] == digest]
        release = max(same, key=_rank) if same else await find_release(client, name, None)
    except NotFoundError:
        raise VerificationFailedError(
            f"nothing is recorded under the name {name}: these bytes were never submitted"
        ) from None
    return await _with_proof(client, Evidence(name=name, data=data, release=release), proved=proved)


async def _of_server(client: Client, name: str, number: int | None, *, proved: bool) -> Evidence:
    from dagseal.cli.commands.archives import find_release
    from dagseal.cli.verification import Evidence
    from integrity.digests import Digest

    release = await find_release(client, name, number)
    data = bytearray()
    async for chunk in client.blob(Digest.parse(release["digest"])):
        data += chunk
        if len(data) > release["size"]:
            break
    return await _with_proof(client, Evidence(name=name, data=bytes(data), release=release), proved=proved)


async def _with_proof(client: Client, evidence: Evidence, *, proved: bool) -> Evidence:
    from integrity.errors import NotFoundError

    release = evidence.release
    if not proved:
        return evidence
    try:
        return replace(evidence, proof=await proving.fetched(client, evidence.name, release["number"]))
    except NotFoundError as error:
        return replace(evidence, missing=f"the server has no proof of {evidence.name}@{release['number']}: {error}")


def _rank(release: Any) -> tuple[bool, bool, int]:
    """Of several releases with the same bytes: the active one, else one that is not revoked, else the newest."""
    return release["state"] == "active", release["state"] != "revoked", int(release["number"])


def _server_log(run: Run, keys: list[VerifyKey] | None) -> None:
    from dagseal.cli import logreading, logverification, report
    from integrity.errors import DagsealError

    if keys is None:
        raise UsageError("a log is worth nothing without a key: use --trust-root FILE")
    try:
        told = run.call(logreading.everything)
    except DagsealError as error:
        raise NotVerifiedError(f"the server's log could not be read: {error}") from None
    report.tell(run, logverification.judge(told, keys, server=run.settings.server, now=int(time.time())))


def _workers(run: Run) -> None:
    """Each worker is a check: it holds, it fails where one drifted, and who is silent or behind was not checked."""
    from dagseal.cli import report
    from integrity.errors import DagsealError

    try:
        found = run.call(lambda client: client.get("/v1/workers"))["workers"]
    except DagsealError as error:
        raise NotVerifiedError(f"the workers could not be asked for: {error}") from None
    there = dict(enumerate((one for one in found if one["revoked_at"] is None), 1))
    if not there:
        raise NotVerifiedError("no worker is enrolled: there is nobody who could hold anything")
    states = {"verified": report.OK, "drifted": report.FAILED}
    checks = tuple(
        report.Check(number=number, state=states.get(one["state"], report.NOT_MADE), detail=_said(one))
        for number, one in there.items()
    )
    titles = {number: one["name"] for number, one in there.items()}
    report.tell(run, report.Report(kind="workers", subject=run.settings.server, titles=titles, checks=checks))


def _said(worker: dict[str, Any]) -> str:
    return f"{worker['name']} is {worker['state']}" + (f": {worker['why']}" if worker["why"] else "")


def _cache(run: Run, folder: str) -> None:
    from dagseal.cli import report
    from integrity.errors import DagsealError
    from worker_cache import fsck

    try:
        found = fsck.check(folder)
    except (DagsealError, OSError) as error:
        raise NotVerifiedError(f"the cache could not be verified: {error}") from None
    wrong = [finding for finding in found.findings if finding.is_damage]
    if run.settings.output in ("json", "yaml"):
        printing.item(
            run,
            {
                "schema": report.SCHEMA,
                "kind": "cache",
                "subject": folder,
                "verdict": report.FAILED if wrong else report.VERIFIED,
                "verified": not wrong,
                "blobs": found.blobs,
                "bytes": found.size,
                "findings": [{"kind": one.kind, "path": one.path, "detail": one.detail} for one in wrong],
            },
        )
    else:
        for one in wrong:
            printing.verdict(run, False, f"{one.kind}: {one.path}: {one.detail}")
        printing.verdict(run, not wrong, f"{found.blobs} cached blobs, {found.size} bytes, {len(wrong)} findings")
    if any(one.kind == "unreadable" for one in found.findings):
        raise NotVerifiedError("some of the cache could not be read")
    if wrong:
        raise VerificationFailedError(f"the cache {folder}: verification FAILED: {wrong[0].path} {wrong[0].detail}")
