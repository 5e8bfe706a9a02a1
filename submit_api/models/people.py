"""Bodies about groups, tokens, and CI runs whose own issuer's token is taken for one."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, FailFast, Field

from submit_api import scopes
from submit_api.models.fields import In, LocalPrincipal, Out, Principal, Scope


def _prefix(value: str) -> str:
    if not scopes.is_scope(f"{scopes.ARCHIVE}:{value}"):
        raise ValueError(f"{value!r} is no beginning of an archive's name: letters, digits and _.- , at least one")
    return value


class GroupRequest(In):
    """What is left out stays as it is."""

    # The first bad name is told, not ten thousand of them: to collect those took most of a second.
    members: Annotated[list[Principal] | None, FailFast()] = Field(default=None, max_length=10_000)
    approvals: int | None = Field(default=None, ge=0, le=10)


class TokenRequest(In):
    principal: LocalPrincipal
    admin: bool = False
    scopes: list[Scope] = Field(default=[], max_length=100)
    expires_at: int | None = Field(default=None, ge=1)


class PublisherRequest(In):
    """`environment` and `ref` left out are any; ids left out are pinned at the first use."""

    issuer: str = Field(min_length=1, max_length=500)
    repository: str = Field(max_length=200, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_.-]+){1,9}$")
    workflow: str = Field(max_length=200, pattern=r"^([A-Za-z0-9_.-]+/){0,9}[A-Za-z0-9_.-]+\.ya?ml$")
    environment: str = Field(default="", max_length=255, pattern=r"^[ -~]*$")
    ref: str = Field(default="", max_length=255, pattern=r"^(refs/[!-~]+)?$")
    repository_id: str = Field(default="", pattern=r"^[0-9]{0,20}$")
    owner_id: str = Field(default="", pattern=r"^[0-9]{0,20}$")
    principal: Principal
    archive_prefix: Annotated[str, AfterValidator(_prefix)]


class ExchangeRequest(In):
    """`token` is the one that CI's own issuer gave to the run."""

    token: str = Field(min_length=1, max_length=65_536, repr=False)


class GroupView(Out):
    """`approvals`: how many other members must approve a release of the group's archives."""

    name: str
    members: list[str]
    approvals: int


class GroupList(Out):
    groups: list[GroupView]


class TokenView(Out):
    token_id: str
    principal: str
    kind: str
    admin: bool
    scopes: list[str]
    created_at: int
    created_by: str
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None
    via: str


class TokenList(Out):
    tokens: list[TokenView]


class NewTokenView(Out):
    """The only answer that holds a token."""

    token_id: str
    token: str = Field(repr=False)


class ExchangedView(Out):
    """The only answer that holds an exchanged token."""

    token_id: str
    token: str = Field(repr=False)
    principal: str
    scopes: list[str]
    expires_at: int


class PublisherView(Out):
    id: str
    issuer: str
    repository: str
    workflow: str
    environment: str
    ref: str
    repository_id: str
    owner_id: str
    principal: str
    archive_prefix: str
    created_at: int
    created_by: str
    last_used_at: int | None


class PublisherList(Out):
    publishers: list[PublisherView]
