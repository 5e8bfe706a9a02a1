"""Fetching an issuer's keys over HTTP: its discovery document, unless the URL of its keys is given, then the keys.

Promise: both together take at most `fetch_seconds`, and each at most `max_keys_bytes`; nothing is inflated, no redirect is
followed, no cookie kept, and every URL is https (`section.is_trusted_url`), also the one that the issuer names itself.
"""

from __future__ import annotations

import asyncio
import json

import aiohttp

from integrity.errors import FetchError
from submit_api.oidc import keysets
from submit_api.oidc.keysets import KeySet
from submit_api.oidc.section import IssuerSection, OidcSection, is_trusted_url

_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "dagseal"}


class HttpFetcher:
    """One client session for all issuers, opened when it is first needed."""

    def __init__(self, limits: OidcSection) -> None:
        self._limits = limits
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def fetch(self, issuer: IssuerSection) -> KeySet:
        """The keys that it publishes now. Raises `FetchError`."""
        try:
            async with asyncio.timeout(self._limits.fetch_seconds):
                return keysets.read(await self._get(issuer.jwks_url or await self._discover(issuer)))
        except TimeoutError:
            raise FetchError(f"it did not answer within {self._limits.fetch_seconds} seconds") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise FetchError(f"it could not be asked ({type(error).__name__})") from None

    async def _discover(self, issuer: IssuerSection) -> str:
        """OpenID Connect Discovery 1.0, section 4.3: the document is to be of the very issuer that was asked."""
        try:
            found = json.loads(await self._get(issuer.discovery_url))
        except (ValueError, RecursionError):
            raise FetchError("its discovery document is not JSON") from None
        if not isinstance(found, dict) or found.get("issuer") != issuer.issuer:
            raise FetchError("its discovery document is of another issuer")
        url = found.get("jwks_uri")
        if not isinstance(url, str) or not is_trusted_url(url, loopback=issuer.unsafe_http_on_loopback):
            raise FetchError("its discovery document names no https:// URL of its keys")
        return url

    async def _get(self, url: str) -> bytes:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=_HEADERS,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                connector=aiohttp.TCPConnector(force_close=True),
            )
        async with self._session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                raise FetchError(f"it answered {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > self._limits.max_keys_bytes:
                    raise FetchError(f"it sent more than {self._limits.max_keys_bytes} bytes")
        return bytes(body)
