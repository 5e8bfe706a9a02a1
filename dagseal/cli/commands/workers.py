"""worker: identity, invite, join, enroll, list, drift, revoke. A launcher's keys are believed because somebody compared their
fingerprint."""

from __future__ import annotations

import hmac
import json
from typing import Any

import typer

from dagseal.cli import printing
from dagseal.cli.commands import spreading
from dagseal.cli.context import Run, run_of
from dagseal.cli.exits import UsageError

DEFAULT_SOCKET = "/run/dagseal/launcher.sock"
_COLUMNS = ("name", "state", "queues", "fingerprint", "request_key_id", "created_at", "revoked_at")


def register(app: typer.Typer) -> None:
    workers = typer.Typer(no_args_is_help=True)
    workers.command()(identity)
    workers.command()(invite)
    workers.command()(join)
    workers.command()(enroll)
    workers.command("list")(list_workers)
    workers.command()(spreading.drift)
    workers.command()(revoke)
    app.add_typer(workers, name="worker", help="The hosts that may run tasks.")


def identity(
    ctx: typer.Context,
    launcher_socket: str = typer.Option(DEFAULT_SOCKET, "--launcher-socket", metavar="PATH"),
) -> None:
    """Ask the launcher of this host for its public keys; with -o json for `enroll --identity-file`."""
    printing.item(run_of(ctx), _ask(launcher_socket))


def invite(
    ctx: typer.Context,
    name: str = typer.Argument(..., metavar="NAME"),
    queue: list[str] = typer.Option(["default"], "--queue", help="May be given more than once."),
    fingerprint: str | None = typer.Option(None, "--fingerprint", help="What the launcher's host shows."),
    unsafe_any_launcher: bool = typer.Option(
        False, "--unsafe-any-launcher", help="Whoever has the invitation says which launcher gets this worker's grants."
    ),
    expires_in: str = typer.Option("15m", "--expires-in", metavar="DURATION", help="At most 24h."),
    out: str | None = typer.Option(None, "--out", metavar="FILE", help="Write it to a new file, 0600, not to stdout."),
) -> None:
    """An invitation, good once, for the agent of a host to join with. It is shown this once.

    For a worker that is enrolled already it replaces its keys or its token, when it is used.
    """
    from dagseal.cli import secret_input
    from dagseal.cli.commands.launches import seconds
    from worker_cache.client import segment

    run = run_of(ctx)
    if (fingerprint is None) != unsafe_any_launcher:
        raise UsageError("give --fingerprint, as the launcher's own host shows it, or --unsafe-any-launcher")
    if out is not None:
        secret_input.check_new(out)
    body: dict[str, object] = {
        "queues": queue,
        "seconds": seconds(expires_in),
        "unsafe_any_launcher": unsafe_any_launcher,
    }
    if fingerprint is not None:
        body["fingerprint"] = fingerprint.strip().lower()
    made = run.call(lambda client: client.send("POST", f"/v1/workers/{segment(name)}/invite", body))
    if out is not None:
        secret_input.write_new(out, made.pop("token"))
        made["token_file"] = out
    printing.item(run, made)


def join(
    ctx: typer.Context,
    invitation: str = typer.Option(..., "--invitation", metavar="FILE", help="The invitation's token; - is stdin."),
) -> None:
    """On a worker's host, as the agent's account (--config FILE of the agent): join with an invitation.

    Makes the agent's own key, takes the launcher's, and has them recorded. Again after whatever broke off on the way.
    """
    import asyncio
    import os

    from dagseal.cli import secret_input
    from worker_cache import joining, settings

    run = run_of(ctx)
    if run.config is None:
        raise UsageError("give the agent's settings: --config /etc/dagseal/agent.toml")
    found = settings.load(run.config, os.environ)
    token = secret_input.read_secret(run, invitation, "the invitation's token")
    worker = asyncio.run(joining.join(found, token))
    printing.item(run.without_config_file(), worker)


def enroll(
    ctx: typer.Context,
    name: str = typer.Argument(..., metavar="NAME"),
    queue: list[str] = typer.Option(["default"], "--queue", help="May be given more than once."),
    launcher_socket: str = typer.Option(DEFAULT_SOCKET, "--launcher-socket", metavar="PATH"),
    identity_file: str | None = typer.Option(
        None, "--identity-file", metavar="FILE", help="Written by `worker identity -o json` on that host; - is stdin."
    ),
    fingerprint: str | None = typer.Option(
        None, "--fingerprint", help="What the launcher's host shows; then nothing is asked."
    ),
    yes: bool = typer.Option(
        False, "--yes", help="Ask nothing: this socket or file is known to be the launcher's own."
    ),
    out: str | None = typer.Option(None, "--out", metavar="FILE", help="Write the token to a new file, 0600."),
) -> None:
    """Trust a launcher, and make the token of its agent. The token is shown this once."""
    from dagseal.cli import secret_input

    run = run_of(ctx)
    found = _from_file(identity_file) if identity_file else _ask(launcher_socket)
    _compare(run, name, found, fingerprint, yes)
    if out is not None:
        secret_input.check_new(out)
    body = {
        "name": name,
        "verify_key": found["verify_key"],
        "sealing_key": found["sealing_key"],
        "fingerprint": found["fingerprint"],
        "queues": queue,
    }
    made = run.call(lambda client: client.send("POST", "/v1/workers", body))
    if out is not None:
        secret_input.write_new(out, made.pop("token"))
        made["token_file"] = out
    printing.item(run, made)


def _compare(run: Run, name: str, found: dict[str, Any], given: str | None, yes: bool) -> None:
    from integrity.errors import SignatureError

    if given is None:
        run.note(f"launcher of {name}: fingerprint {found['fingerprint']}")
        if not yes:
            run.confirm("Is this the fingerprint that `dagseal worker identity` shows on that host?")
    elif not hmac.compare_digest(given.strip().lower().encode(), found["fingerprint"].encode()):
        raise SignatureError(
            f"the launcher's fingerprint is {found['fingerprint']}, not the given one: do not enroll it, and find out why"
        )


def _ask(launcher_socket: str) -> dict[str, Any]:
    import asyncio

    from worker_cache import agent
    from worker_cache.launchers import AtSocket

    found = asyncio.run(agent.identify(AtSocket(launcher_socket)))
    return _described(found.verify_key.raw, found.sealing_key.raw) | {
        "version": found.version,
        "privileged": found.privileged,
        "warnings": list(found.warnings),
    }


def _from_file(source: str) -> dict[str, Any]:
    from dagseal.cli import secret_input
    from integrity.errors import MalformedError
    from integrity.fields import from_base64
    from vocabulary.keys import KEY_BYTES

    try:
        value = json.loads(secret_input.read_bytes(source))
        keys = [from_base64(value[key], key, max_bytes=KEY_BYTES) for key in ("verify_key", "sealing_key")]
        return _described(*keys)
    except (ValueError, KeyError, TypeError, MalformedError) as error:
        raise UsageError(
            f"{source} is not a launcher's identity ({error}): write it by `worker identity -o json`"
        ) from None


def _described(verify_key: bytes, sealing_key: bytes) -> dict[str, Any]:
    from integrity.fields import to_base64
    from vocabulary.keys import SealTo, VerifyKey, fingerprint

    return {
        "fingerprint": fingerprint(VerifyKey(verify_key), SealTo(sealing_key)),
        "verify_key": to_base64(verify_key),
        "sealing_key": to_base64(SealTo(sealing_key).raw),
    }


def list_workers(ctx: typer.Context) -> None:
    """All workers."""
    run = run_of(ctx)
    printing.rows(run, run.call(lambda client: client.get("/v1/workers"))["workers"], _COLUMNS)


def revoke(ctx: typer.Context, name: str = typer.Argument(..., metavar="NAME")) -> None:
    """Take a worker's trust and its tokens away."""
    from worker_cache.client import segment

    run = run_of(ctx)
    run.call(lambda client: client.send("DELETE", f"/v1/workers/{segment(name)}"))
    run.note(f"worker {name} revoked")
