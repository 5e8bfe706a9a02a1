"""verify: is this what was submitted? The numbered checks are printed; 0 all hold, 1 one fails, 3 it cannot be known."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import typer

from dagseal.cli import printing
from dagseal.cli.context import Run, run_of
from dagseal.cli.exits import NotVerifiedError, UsageError, VerificationFailedError

if TYPE_CHECKING:
    from dagseal.cli.verification import Evidence
    from integrity.keys import KeyRing
    from worker_cache.client import Client


def register(app: typer.Typer) -> None:
    app.command()(verify)


def verify(
    ctx: typer.Context,
    target: str | None = typer.Argument(None, metavar="[PATH|NAME[@N]|-]"),
    name: str | None = typer.Option(None, "--name", help="The archive that PATH or stdin is to be."),
    cache: str | None = typer.Option(
        None, "--cache", metavar="DIR", help="Check every blob of an agent's cache instead."
    ),
    api_key: str | None = typer.Option(None, "--api-key", help="The API's public key, base64 (or api_key in [cli])."),
    unsafe_trust_server: bool = typer.Option(
        False, "--unsafe-trust-server", help="Do not check signatures: believe what the server says is recorded."
    ),
) -> None:
    """Compare bytes with the recorded and signed manifest.

    PATH: a file or folder here. NAME: what the server would send to a worker. --cache: what a worker has.
    """
    run = run_of(ctx)
    if (target is None) == (cache is None):
        raise UsageError("say what to verify: PATH, NAME, - or --cache DIR")
    if cache is not None:
        _cache(run, cache)
        return
    assert target is not None
    ring = _ring(run, api_key, unsafe_trust_server)
    evidence = _evidence(run, target, name)
    _report(run, evidence, ring)


def _ring(run: Run, api_key: str | None, unsafe_trust_server: bool) -> KeyRing | None:
    from integrity.errors import MalformedError
    from integrity.fields import from_base64
    from integrity.keys import KEY_BYTES, KeyRing, VerifyKey

    text = api_key or run.settings.api_key
    if text is None:
        if unsafe_trust_server:
            return None
        raise NotVerifiedError(
            "no key to check signatures with: set DAGSEAL_API_KEY (dagseal key show prints it on the server's host)"
        )
    try:
        return KeyRing([VerifyKey(from_base64(text, "the API's key", max_bytes=KEY_BYTES))])
    except MalformedError as error:
        raise UsageError(str(error)) from None


def _evidence(run: Run, target: str, name: str | None) -> Evidence:
    """Everything that the rules need, gathered: nothing is judged here."""
    from dagseal.cli import archive_input
    from dagseal.cli.commands.archives import reference
    from integrity.errors import ConflictError, DagsealError, NotFoundError

    local = target == "-" or os.path.exists(target)
    try:
        if local:
            named = archive_input.read(target, name)
            return run.call(lambda client: _of_bytes(client, named.name, named.data))
        archive, number = reference(target)
        return run.call(lambda client: _of_server(client, archive, number))
    except (UsageError, NotFoundError, VerificationFailedError):
        raise
    except (ConflictError, DagsealError) as error:
        raise NotVerifiedError(f"it could not be verified: {error}") from None


async def _of_bytes(client: Client, name: str, data: bytes) -> Evidence:
    from dagseal.cli import pages
    from dagseal.cli.verification import Evidence
    from integrity.digests import Digest
    from integrity.errors import NotFoundError
    from worker_cache.client import segment

    digest = str(Digest.of(data))
    try:
        newest = (await client.get(f"/v1/archives/{segment(name)}/releases", {"limit": "1"}))["releases"]
        releases = await pages.releases(client, name, digest=digest)
    except NotFoundError:
        raise VerificationFailedError(
            f"nothing is recorded under the name {name}: these bytes were never submitted"
        ) from None
    same = [release for release in releases if release["digest"] == digest]
    release = max(same, key=lambda found: _rank(found), default=None)
    envelope = await client.manifest(name, release["number"]) if release else None
    return Evidence(name=name, data=data, release=release, newest=newest[-1] if newest else None, envelope=envelope)


async def _of_server(client: Client, name: str, number: int | None) -> Evidence:
    from dagseal.cli.commands.archives import find_release
    from dagseal.cli.verification import Evidence
    from integrity.digests import Digest

    release = await find_release(client, name, number)
    data = bytearray()
    async for chunk in client.blob(Digest.parse(release["digest"])):
        data += chunk
        if len(data) > release["size"]:
            break
    envelope = await client.manifest(name, release["number"])
    return Evidence(name=name, data=bytes(data), release=release, newest=release, envelope=envelope)


def _rank(release: Any) -> tuple[bool, bool, int]:
    """Of several releases with the same bytes: the active one, else one that is not revoked, else the newest."""
    return release["state"] == "active", release["state"] != "revoked", int(release["number"])


def _report(run: Run, evidence: Evidence, ring: KeyRing | None) -> None:
    from dagseal.cli.verification import judge

    checks = judge(evidence, ring)
    failed = [check for check in checks if not check.ok]
    if run.settings.output in ("json", "yaml"):
        printing.item(
            run,
            {
                "name": evidence.name,
                "verified": not failed,
                "signature_checked": ring is not None,
                "release": evidence.release["number"] if evidence.release else None,
                "checks": [{"number": c.number, "ok": c.ok, "detail": c.detail} for c in checks],
            },
        )
    else:
        for check in checks:
            printing.verdict(run, check.ok, f"{check.number}. {check.detail}")
    if ring is None:
        run.note("the signature was not checked (--unsafe-trust-server): this is the server's word only")
    if failed:
        raise VerificationFailedError(f"{evidence.name}: verification FAILED: {failed[0].detail}")
    run.note(f"{evidence.name}: verified")


def _cache(run: Run, folder: str) -> None:
    from integrity.errors import DagsealError
    from worker_cache import fsck

    try:
        report = fsck.check(folder)
    except (DagsealError, OSError) as error:
        raise NotVerifiedError(f"the cache could not be verified: {error}") from None
    found = [{"kind": f.kind, "path": f.path, "detail": f.detail} for f in report.findings if f.is_damage]
    if run.settings.output in ("json", "yaml"):
        printing.item(run, {"verified": not found, "blobs": report.blobs, "bytes": report.size, "findings": found})
    else:
        for row in found:
            printing.verdict(run, False, f"{row['kind']}: {row['path']}: {row['detail']}")
        printing.verdict(run, not found, f"{report.blobs} cached blobs, {report.size} bytes, {len(found)} findings")
    if any(f.kind == "unreadable" for f in report.findings):
        raise NotVerifiedError("some of the cache could not be read")
    if found:
        raise VerificationFailedError(
            f"the cache {folder}: verification FAILED: {found[0]['path']} {found[0]['detail']}"
        )
