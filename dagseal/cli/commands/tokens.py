"""token and key: who may call, what the API signs with, and what its secrets rest under."""

from __future__ import annotations

import typer

from dagseal.cli import printing
from dagseal.cli.commands.authoring import author_new
from dagseal.cli.context import run_of
from dagseal.cli.exits import UsageError

_WHEN = ("created_at", "expires_at", "revoked_at", "last_used_at")
_COLUMNS = ("token_id", "principal", "kind", "admin", "scopes", "created_by", *_WHEN)
_ROW_KEY_COLUMNS = ("key_id", "state", "connections", "variables", "xcoms")
_SCOPE = "archive:push:PREFIX, launch:GLOB, audit:read or admin; again for more. Without: no limit."


def register(app: typer.Typer) -> None:
    tokens = typer.Typer(no_args_is_help=True)
    tokens.command()(create)
    tokens.command("list")(list_tokens)
    tokens.command()(revoke)
    tokens.command()(exchange)
    app.add_typer(tokens, name="token", help="Tokens of people and of CI.")
    keys = typer.Typer(no_args_is_help=True)
    keys.command("show")(key_show)
    keys.command("fingerprint")(key_fingerprint)
    keys.command("prepare-signing")(key_prepare_signing)
    keys.command("hand-on-signing")(key_hand_on)
    keys.command("list")(key_list)
    keys.command("rotate")(key_rotate)
    keys.command("retire")(key_retire)
    keys.command("author-new")(author_new)
    app.add_typer(
        keys, name="key", help="The API's public key, the keys that its secrets rest under, and authors' keys."
    )


def create(
    ctx: typer.Context,
    principal: str = typer.Argument(..., metavar="PRINCIPAL"),
    admin: bool = typer.Option(False, "--admin"),
    scope: list[str] = typer.Option([], "--scope", metavar="SCOPE", help=_SCOPE),
    expires_in: str | None = typer.Option(None, "--expires-in", metavar="DURATION", help="Such as 12h or 90d."),
    out: str | None = typer.Option(None, "--out", metavar="FILE", help="Write it to a new file, 0600, not to stdout."),
) -> None:
    """Make a token. It is shown this once."""
    import time

    from dagseal.cli import secret_input
    from dagseal.cli.commands.launches import seconds

    run = run_of(ctx)
    body: dict[str, object] = {"principal": principal, "admin": admin, "scopes": scope}
    if expires_in is not None:
        body["expires_at"] = (int(time.time()) + seconds(expires_in)) * 1_000_000
    if out is not None:
        secret_input.check_new(out)
    made = run.call(lambda client: client.send("POST", "/v1/tokens", body))
    if out is not None:
        secret_input.write_new(out, made["token"])
        made = {"token_id": made["token_id"], "token_file": out}
    printing.item(run, made)


def list_tokens(ctx: typer.Context) -> None:
    """All tokens, without their secrets."""
    run = run_of(ctx)
    printing.rows(run, run.call(lambda client: client.get("/v1/tokens"))["tokens"], _COLUMNS)


def revoke(ctx: typer.Context, token_id: str = typer.Argument(..., metavar="TOKEN_ID")) -> None:
    """End a token now."""
    from worker_cache.client import segment

    run = run_of(ctx)
    run.call(lambda client: client.send("DELETE", f"/v1/tokens/{segment(token_id)}"))
    run.note(f"token {token_id} revoked")


def exchange(
    ctx: typer.Context,
    file: str | None = typer.Option(None, "--file", metavar="FILE", help="The token of CI's issuer; default stdin."),
    out: str = typer.Option(..., "--out", metavar="FILE", help="Write ours to a new file, 0600: for --token-file."),
) -> None:
    """In a run of CI: its issuer's token for one of ours, for fifteen minutes. See trusted publishing."""
    from dagseal.cli import secret_input

    run = run_of(ctx)
    secret_input.check_new(out)
    body = {"token": secret_input.read_secret(run, file, "the token of CI's issuer")}
    made = run.call(lambda client: client.send("POST", "/v1/tokens/exchange", body), anonymous=True)
    secret_input.write_new(out, made.pop("token"))
    printing.item(run, {**made, "token_file": out})


def key_show(ctx: typer.Context) -> None:
    """The API's public key, read on the API's host (--config FILE of the API): for agents, launchers and `verify`."""
    from submit_api import settings

    run = run_of(ctx)
    path = settings.load(run.config).verify_key_file
    try:
        with open(path, encoding="ascii") as file:
            raw = bytes.fromhex(file.read(200).strip())
    except (OSError, ValueError) as error:
        raise UsageError(f"the API's public key {path} cannot be read ({error}): run this on the API's host") from None
    printing.item(run.without_config_file(), _described(raw))


def key_fingerprint(
    ctx: typer.Context,
    key: str | None = typer.Argument(None, metavar="[BASE64]", help="Default: the api_key of your settings."),
) -> None:
    """The fingerprint of a public key: what two people compare."""
    from integrity.errors import MalformedError
    from integrity.fields import from_base64
    from vocabulary.keys import KEY_BYTES

    run = run_of(ctx)
    text = key or run.settings.api_key
    if text is None:
        raise UsageError("no key: give it as base64, or set DAGSEAL_API_KEY")
    try:
        printing.item(run, _described(from_base64(text, "the key", max_bytes=KEY_BYTES)))
    except MalformedError as error:
        raise UsageError(str(error)) from None


def key_prepare_signing(ctx: typer.Context) -> None:
    """On the API's host (--config FILE of the API): make the next signing key, which does not count yet. Add what is shown to
    the `api_keys` of every launcher before it is handed on."""
    from submit_api import handover, settings

    run = run_of(ctx)
    key = handover.prepare(settings.load(run.config))
    printing.item(run.without_config_file(), _described(key.raw))


def key_hand_on(ctx: typer.Context) -> None:
    """On the API's host, while the service is stopped: the prepared key signs from now on, and the log says so."""
    import asyncio
    from dataclasses import asdict

    from submit_api import handover, logging_setup, settings

    logging_setup.configure()
    run = run_of(ctx)
    done = asyncio.run(handover.hand_on(settings.load(run.config)))
    printing.item(run.without_config_file(), asdict(done))
    run.note("make a backup now: an older one cannot be restored with this key")


def key_list(ctx: typer.Context) -> None:
    """The keys that secrets rest under, and how many rows each still holds."""
    run = run_of(ctx)
    printing.rows(run, run.call(lambda client: client.get("/v1/keys"))["keys"], _ROW_KEY_COLUMNS)


def key_rotate(ctx: typer.Context) -> None:
    """Make a new key that encrypts from now on. The server rewrites what is under older ones, and goes on serving."""
    run = run_of(ctx)
    made = run.call(lambda client: client.send("POST", "/v1/keys/rotate"))
    printing.item(run, made, _ROW_KEY_COLUMNS)
    run.note(
        "back the new key up; when 'dagseal key list' shows that an older one holds no rows, 'dagseal key retire' it"
    )


def key_retire(ctx: typer.Context, key_id: str = typer.Argument(..., metavar="KEY_ID")) -> None:
    """Remove an older key that no row needs; refused as long as one does."""
    from worker_cache.client import segment

    run = run_of(ctx)
    run.call(lambda client: client.send("DELETE", f"/v1/keys/{segment(key_id)}"))
    run.note(f"row key {key_id} removed: backups made before today need a copy of it")


def _described(raw: bytes) -> dict[str, str]:
    from integrity.fields import to_base64
    from vocabulary.keys import VerifyKey

    key = VerifyKey(raw)
    return {"api_key": to_base64(key.raw), "fingerprint": key.key_id}
