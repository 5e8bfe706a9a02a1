"""What an administrator says of each issuer whose tokens are taken: `[[oidc.issuers]]` in the TOML file.

Promise: an issuer is `https://`, but for loopback where an option that says unsafe is set; its audience is required; no
symmetric algorithm can be allowed. Out of the box an issuer's tokens are only good for trusted publishing: who may sign in
with one is said by `sign_in`, and everybody of an issuer that the whole world has tokens of may not.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from submit_api.models.fields import LocalPrincipal, Scope

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
IssuerName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,19}$")]
NOBODY: Final = "nobody"
MAPPED: Final = "mapped"
EVERYBODY: Final = "everybody"
# Anybody can get a token of these, for any audience: that they vouch for somebody says nothing about whom.
PUBLIC_HOSTS = frozenset({"token.actions.githubusercontent.com", "gitlab.com", "accounts.google.com"})


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class IssuerSection(_Section):
    """One issuer. `name` stands before the principals that it names. `groups_claim` is believed only where it is set.
    `principals`: value of the principal's claim -> a principal of dagseal's own. `ci`: what it tells of is a run of CI, in
    GitHub's or GitLab's words (`submit_api.publishing`)."""

    name: IssuerName
    issuer: str
    audience: str = Field(min_length=1, max_length=255)
    jwks_url: str = ""
    algorithms: list[Algorithm] = Field(default=["RS256"], min_length=1)
    sign_in: Literal["nobody", "mapped", "everybody"] = NOBODY
    principal_claim: str = Field(default="sub", min_length=1, max_length=100)
    principals: dict[str, LocalPrincipal] = {}
    groups_claim: str = Field(default="", max_length=100)
    scopes: list[Scope] = []
    ci: Literal["", "github", "gitlab"] = ""
    unsafe_http_on_loopback: bool = False

    @model_validator(mode="after")
    def _whole(self) -> IssuerSection:
        _check_url("issuer", self.issuer, loopback=self.unsafe_http_on_loopback)
        if urlsplit(self.issuer).query:
            raise ValueError("issuer is to have no query")
        if self.jwks_url:
            _check_url("jwks_url", self.jwks_url, loopback=self.unsafe_http_on_loopback)
        if self.sign_in == EVERYBODY and urlsplit(self.issuer).hostname in PUBLIC_HOSTS:
            raise ValueError("anybody can get a token of this issuer: sign_in is to be 'nobody', or 'mapped'")
        if bool(self.principals) != (self.sign_in == MAPPED) and self.sign_in != EVERYBODY:
            raise ValueError("principals goes with sign_in = 'mapped' or 'everybody', and 'mapped' needs it")
        return self

    @property
    def discovery_url(self) -> str:
        return self.issuer.rstrip("/") + "/.well-known/openid-configuration"


class OidcSection(_Section):
    """All issuers, and what is spent on a token and on an issuer's keys."""

    issuers: list[IssuerSection] = []
    max_token_chars: int = Field(default=8000, ge=512)  # a header has 8190 at most
    max_lifetime_seconds: int = Field(default=86_400, ge=60)
    leeway_seconds: int = Field(default=30, ge=0, le=300)
    keys_seconds: float = Field(default=3600, gt=0)
    stale_keys_seconds: float = Field(default=86_400, gt=0)
    refetch_seconds: float = Field(default=30, gt=0)
    fetch_seconds: float = Field(default=5, gt=0)
    max_keys_bytes: int = Field(default=262_144, ge=1024)

    @model_validator(mode="after")
    def _distinct(self) -> OidcSection:
        for what in ("name", "issuer"):
            found = [getattr(issuer, what) for issuer in self.issuers]
            if len(set(found)) != len(found):
                raise ValueError(f"two issuers have the same {what}")
        if self.stale_keys_seconds < self.keys_seconds:
            raise ValueError("stale_keys_seconds is to be keys_seconds at least")
        return self


def _check_url(what: str, url: str, *, loopback: bool) -> None:
    if not is_trusted_url(url, loopback=loopback):
        raise ValueError(f"{what} is to be an https:// URL without user or fragment")


def is_trusted_url(url: str, *, loopback: bool) -> bool:
    """Whether keys may come from there: over TLS, or, where that is allowed, from this very host."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or parts.username is not None or parts.password is not None or "#" in url:
        return False
    if not url.isascii() or not url.isprintable() or " " in url or len(url) > 500:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and loopback and _is_loopback(host))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
