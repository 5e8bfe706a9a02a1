"""Proofs as the server gives them, and the keys that they are judged by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagseal.cli.exits import NotVerifiedError, UsageError

if TYPE_CHECKING:
    from dagseal.cli.context import Run
    from vocabulary.keys import VerifyKey
    from vocabulary.proofs import Proof
    from worker_cache.client import Client

_HEX_CHARS = 64
_BINARY = 15 * 1024 * 1024


async def fetched(client: Client, name: str, number: int) -> Proof:
    """Of a release, as of now. Raises `MalformedError` for an answer that is none."""
    from integrity.fields import Fields, from_base64
    from vocabulary.proofs import Proof
    from worker_cache.client import segment

    found = Fields(await client.get(f"/v1/archives/{segment(name)}/releases/{number}/proof"), "the server's proof")
    return Proof(
        manifest=found.binary("manifest", max_bytes=_BINARY),
        entry=found.binary("entry", max_bytes=_BINARY),
        index=found.integer("index"),
        path=tuple(from_base64(str(one), "a hash", max_bytes=_BINARY) for one in found.items("path", max_items=1000)),
        checkpoint=found.text("checkpoint", max_chars=_BINARY).encode(),
        keys=tuple(from_base64(str(one), "a key", max_bytes=_BINARY) for one in found.items("keys", max_items=1000)),
    )


def trusted(run: Run, file: str | None, text: str | None) -> list[VerifyKey]:
    """The keys that the user trusts: of --trust-root, else of --api-key, else of the settings. Raises `UsageError` for what
    is no key, `NotVerifiedError` where there is none."""
    from integrity.errors import MalformedError

    if file is not None and text is not None:
        raise UsageError("--trust-root and --api-key are the same thing twice: use one")
    try:
        if file is not None:
            return of_file(file)
        text = text or run.settings.api_key
        if text is not None:
            return [of_text(text)]
    except MalformedError as error:
        raise UsageError(str(error)) from None
    raise NotVerifiedError(
        "no key to check signatures with: use --trust-root FILE, or set DAGSEAL_API_KEY "
        "(dagseal key show prints it on the server's host)"
    )


def of_file(path: str) -> list[VerifyKey]:
    """One key a line. Raises `UsageError`, `MalformedError`."""
    try:
        with open(path, encoding="ascii") as file:
            lines = file.read(1024 * 1024).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the trust root {path} cannot be read: {error}") from None
    keys = [of_text(line.strip()) for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise UsageError(f"there is no key in the trust root {path}")
    return keys


def of_text(text: str) -> VerifyKey:
    """As `dagseal key show` prints it, or as the server's verify.key has it."""
    from integrity.errors import MalformedError
    from integrity.fields import from_base64
    from vocabulary.keys import KEY_BYTES, VerifyKey

    if len(text) == _HEX_CHARS:
        try:
            return VerifyKey(bytes.fromhex(text))
        except ValueError:
            raise MalformedError("the API's key is to be 64 hexadecimal characters, or base64") from None
    return VerifyKey(from_base64(text, "the API's key", max_bytes=KEY_BYTES))
