"""An OpenID Connect issuer on loopback, with real keys: it publishes them, rotates them, is down, slow, or sends without end.

`Issuer` alone is its keys and its pen, for tests without a network; `serving` puts it on a port of the running loop, and
`threaded` on one of its own, for tests whose API is another process. What it signs, it was told to sign: also nonsense.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import gzip
import json
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

AUDIENCE = "https://dagseal.example.com"
ALGORITHMS = get_default_algorithms()


@functools.cache
def private_key(kind: str, number: int = 0) -> Any:
    """The same for everybody who asks for the same: they are slow to make."""
    del number
    match kind:
        case "RSA":
            return rsa.generate_private_key(65537, 2048)
        case "weak RSA":
            return rsa.generate_private_key(65537, 1024)
        case "P-256":
            return ec.generate_private_key(ec.SECP256R1())
        case "P-384":
            return ec.generate_private_key(ec.SECP384R1())
        case "P-521":
            return ec.generate_private_key(ec.SECP521R1())
    return ed25519.Ed25519PrivateKey.generate()


# Algorithm -> the kind of key that signs with it.
KINDS = {
    "RS256": "RSA", "RS384": "RSA", "RS512": "RSA", "PS256": "RSA", "PS384": "RSA", "PS512": "RSA",
    "ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519",
}  # fmt: skip


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def public_jwk(algorithm: str, key: Any, kid: str | None, **more: Any) -> dict[str, Any]:
    """As an issuer publishes it."""
    found: dict[str, Any] = ALGORITHMS[algorithm].to_jwk(key.public_key(), as_dict=True)
    found.pop("key_ops", None)
    named = {} if kid is None else {"kid": kid}
    return {**found, "use": "sig", **named, **more}


class Issuer:
    """`published` is what it says its keys are, `keys` what it can sign with, by key id."""

    def __init__(self, url: str = "https://issuer.example.com", *, number: int = 0) -> None:
        self.url = url
        self.keys: dict[str, tuple[str, Any]] = {}
        self.published: list[dict[str, Any]] = []
        self.mode = "well"
        self.asked: list[str] = []
        self.waiting = asyncio.Event()
        self.add("RS256", "first", number=number)

    def add(self, algorithm: str, kid: str, *, number: int = 0, **more: Any) -> None:
        """Sign with this key from now on, and publish it."""
        key = private_key(KINDS[algorithm], number)
        self.keys[kid] = (algorithm, key)
        self.published.append(public_jwk(algorithm, key, kid, **more))

    def rotate(self, kid: str) -> None:
        """Another key instead of all before."""
        self.keys.clear()
        self.published.clear()
        self.add("RS256", kid, number=len(kid) + 1)

    def claims(self, now_us: int, **changes: Any) -> dict[str, Any]:
        """Those of a good token; a change to `...` leaves the claim out."""
        now = now_us // 1_000_000
        made = {
            "iss": self.url, "aud": AUDIENCE, "sub": "ada", "iat": now, "nbf": now, "exp": now + 300, **changes,
        }  # fmt: skip
        return {name: value for name, value in made.items() if value is not ...}

    def token(self, now_us: int, *, kid: str = "", header: Mapping[str, Any] | None = None, **changes: Any) -> str:
        """A token that one of its keys signed; `header` changes the header as `changes` do the claims."""
        kid = kid or next(iter(self.keys))
        algorithm, key = self.keys[kid]
        head = {"alg": algorithm, "kid": kid, "typ": "JWT", **(header or {})}
        head = {name: value for name, value in head.items() if value is not ...}
        return signed(head, self.claims(now_us, **changes), algorithm, key)

    def key_set(self) -> bytes:
        return json.dumps({"keys": self.published}).encode()

    async def _discovery(self, request: web.Request) -> web.StreamResponse:
        self.asked.append("discovery")
        match self.mode:
            case "down":
                raise web.HTTPServiceUnavailable
            case "elsewhere":
                raise web.HTTPFound(self.url + "/moved")
            case "another issuer":
                return web.json_response({"issuer": self.url + "/", "jwks_uri": self.url + "/keys"})
            case "no JSON":
                return web.Response(text="[" * 4000)
            case "foreign keys":
                return web.json_response({"issuer": self.url, "jwks_uri": "http://192.0.2.1/keys"})
        return web.json_response({"issuer": self.url, "jwks_uri": self.url + "/keys"})

    async def _moved(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"issuer": self.url, "jwks_uri": self.url + "/keys"})

    async def _key_set(self, request: web.Request) -> web.StreamResponse:
        self.asked.append("keys")
        match self.mode:
            case "slow":
                await self.waiting.wait()
            case "endless" | "dripping":
                answer = web.StreamResponse()
                await answer.prepare(request)
                while True:
                    await answer.write(b" " * (65536 if self.mode == "endless" else 1))
                    if self.mode == "dripping":
                        await self.waiting.wait()
            case "coded":
                return web.Response(body=gzip.compress(self.key_set()), headers={"Content-Encoding": "gzip"})
        return web.Response(body=self.key_set(), content_type="application/json")

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Issuer]:
        """On a port of the running loop; `url` says which."""
        app = web.Application()
        app.router.add_get("/.well-known/openid-configuration", self._discovery)
        app.router.add_get("/moved", self._moved)
        app.router.add_get("/keys", self._key_set)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert runner.addresses
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            self.waiting.set()
            await runner.cleanup()

    @contextmanager
    def threaded(self) -> Iterator[Issuer]:
        """In a thread of its own."""
        loop, started, ended = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

        async def within() -> None:
            async with self.serving():
                started.set()
                await ended.wait()

        thread = threading.Thread(target=lambda: loop.run_until_complete(within()))
        thread.start()
        assert started.wait(30)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(ended.set)
            thread.join()
            loop.close()


def signed(header: Mapping[str, Any], claims: Mapping[str, Any] | bytes, algorithm: str, key: Any) -> str:
    """These very bytes, signed. Nothing is checked."""
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    text = f"{encoded(json.dumps(header).encode())}.{encoded(payload)}"
    return f"{text}.{encoded(ALGORITHMS[algorithm].sign(text.encode(), key))}"


# What GitHub and GitLab tell of the same run.
GITHUB_RUN: dict[str, Any] = {
    "sub": "repo:Octo/etl:environment:Prod",
    "repository": "Octo/etl",
    "repository_id": "11",
    "repository_owner": "Octo",
    "repository_owner_id": "7",
    "job_workflow_ref": "Octo/etl/.github/workflows/publish.yml@refs/heads/main",
    "workflow_ref": "Octo/etl/.github/workflows/publish.yml@refs/heads/main",
    "environment": "Prod",
    "ref": "refs/heads/main",
    "sha": "abc",
    "event_name": "push",
    "run_id": "42",
    "run_attempt": "1",
}
GITLAB_RUN: dict[str, Any] = {
    "sub": "project_path:octo/sub/etl:ref_type:branch:ref:main",
    "project_path": "octo/sub/etl",
    "project_id": "11",
    "namespace_id": "7",
    "ci_config_ref_uri": "gitlab.example.com/octo/sub/etl//ci/publish.yml@refs/heads/main",
    "environment": "Prod",
    "ref_path": "refs/heads/main",
    "sha": "abc",
    "pipeline_id": "42",
    "job_id": "43",
}
