"""What permits a submission: rules that take records and say no by raising; they do no I/O.

They are asked three times with what is on record by then: before a byte of the body is read, before the archive is
described, and when it is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from integrity import names
from integrity.digests import Digest
from integrity.errors import ConflictError, MalformedError, NotOwnerError, SecurityError
from integrity.fields import from_base64
from submit_api import launches, modes, permissions, scopes
from submit_api.identity import Caller
from submit_api.refusals import AuthorSignatureError, DigestAlgorithmError, InvalidRequestError, PreconditionError
from submit_api.registry.records import Archive, Release
from vocabulary import authorship, claims
from vocabulary import manifest as manifests
from vocabulary.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the request's line and headers ask for. Empty `group` means the archive's own, or the caller's."""

    name: str
    group: str
    task_check: str
    isolation: str | None
    require_caller: bool
    repr_digest: Digest | None
    if_match: str | None
    if_none_match: str | None
    author: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """The release, the number of the active one then, and whether this request made it."""

    release: Release
    manifest: Manifest
    active: int | None
    created: bool


@dataclass(slots=True, kw_only=True)
class OnRecord:
    """What there is of everything that some submissions touch. `revoked` is by archive and digest. `manifests` has those of
    the newest releases, verified, where a submission has the same bytes; by archive and number."""

    archives: dict[str, Archive] = field(default_factory=dict)
    newest: dict[str, Release] = field(default_factory=dict)
    revoked: dict[tuple[str, str], Release] = field(default_factory=dict)
    manifests: dict[tuple[str, int], Manifest] = field(default_factory=dict)
    dags: dict[str, str] = field(default_factory=dict)
    asking: Mapping[str, int] = field(default_factory=dict)


def wanted(
    name: str,
    group: str | None,
    task_check: str | None,
    isolation: str | None,
    require_caller: str | None,
    repr_digest: str | None,
    if_match: str | None,
    if_none_match: str | None,
    author: str | None = None,
) -> Wanted:
    """Read the request's own words. Raises `MalformedError`, `InvalidRequestError`, `AuthorSignatureError`."""
    names.check("archive", name)
    if group is not None:
        names.check("group", group)
    if task_check is not None and task_check not in manifests.TASK_CHECKS:
        raise InvalidRequestError(f"task_check is to be one of {', '.join(manifests.TASK_CHECKS)}")
    if isolation is not None and isolation not in claims.PROFILES:
        raise InvalidRequestError(f"isolation is to be one of {', '.join(claims.PROFILES)}")
    if repr_digest is not None and not repr_digest.strip().startswith("sha-512="):
        raise DigestAlgorithmError(
            "the only Repr-Digest that is taken here is sha-512=:<base64 of the 64 digest bytes>:"
        )
    if require_caller not in (None, "true", "false"):
        raise InvalidRequestError("require_caller is to be true or false")
    return Wanted(
        name=name,
        group=group or "",
        task_check=task_check or "task",
        isolation=isolation,
        require_caller=require_caller == "true",
        repr_digest=Digest.from_repr_digest(repr_digest) if repr_digest is not None else None,
        if_match=if_match,
        if_none_match=if_none_match,
        author=_author(author) if author is not None else None,
    )


def check_author(ask: Wanted, digest: Digest) -> None:
    """Whether what was sent as the author's signature is one, of this archive and these bytes, by the key that it names. Whose
    key that is, and whether anybody trusts it, is for those to say who launch. Raises `AuthorSignatureError`."""
    if ask.author is None:
        return
    try:
        named = authorship.key_of(ask.author)
        authorship.verify(ask.author, archive=ask.name, digest=digest, keys=[named])
    except SecurityError as error:
        raise AuthorSignatureError(f"the author's signature is not one of {ask.name} with {digest}: {error}") from None


def unchanged(on_record: OnRecord, caller: Caller, ask: Wanted, digest: Digest) -> Submitted | None:
    """The newest release, when it has these bytes and says the same of them. Revoked bytes do not come back.

    Raises what `check_owner` and `check_newest` raise, and `ConflictError`.
    """
    archive, newest = on_record.archives.get(ask.name), on_record.newest.get(ask.name)
    check_owner(archive, caller, ask)
    check_newest(archive, newest.digest if newest else "", ask)
    if archive is None or newest is None:
        return None
    revoked = on_record.revoked.get((ask.name, str(digest)))
    if revoked is not None:
        raise ConflictError(
            f"these bytes are {ask.name}@{revoked.number}, which {launches.unlaunchable(revoked)}: push changed ones"
        )
    manifest = on_record.manifests.get((ask.name, newest.number))
    if (
        newest.digest == str(digest)
        and newest.task_check == ask.task_check
        and newest.isolation == ask.isolation
        and newest.author == ask.author
        and ask.group in ("", newest.group)
        and manifest is not None
        and manifest.require_caller == ask.require_caller
    ):
        return Submitted(release=newest, manifest=manifest, active=archive.active, created=False)
    return None


def check_newest(archive: Archive | None, newest: str, ask: Wanted) -> None:
    """`If-Match`: only when the newest release is the one that the caller knows; `If-None-Match`: only when it is not, `*` is
    only a new archive. `newest` is the digest of the archive's. Raises `PreconditionError`."""
    unwanted = _tags(ask.if_none_match)
    if archive is not None and ("*" in unwanted or f'"{newest}"' in unwanted):
        raise PreconditionError(f"{ask.name} is there already: {ask.name}@{archive.latest} is {newest}")
    if ask.if_match is None:
        return
    tags = _tags(ask.if_match)
    if archive is None:
        raise PreconditionError(f"there is no archive {ask.name} yet: push it without If-Match")
    if "*" not in tags and f'"{newest}"' not in tags:
        raise PreconditionError(
            f"the newest release is {ask.name}@{archive.latest}, {newest}: look at it, then push again"
        )


def check_owner(archive: Archive | None, caller: Caller, ask: Wanted) -> None:
    """A new name is anybody's; an existing archive asks for the bit to write it."""
    permissions.require_scope(caller, scopes.ARCHIVE, ask.name)
    if archive is not None:
        permissions.require(caller, modes.WRITE, archive, f"archive {archive.name}")
        if ask.group in ("", archive.group):
            return
        if not caller.admin and caller.principal != archive.owner:
            raise NotOwnerError(f"only {archive.owner} can move archive {archive.name} to group {ask.group}")
    if ask.group and not caller.admin and ask.group != caller.principal and ask.group not in caller.groups:
        raise NotOwnerError(f"{caller.principal} is not in group {ask.group}: ask an administrator to be added")


def _author(header: str) -> bytes:
    """What can be seen of it before the body is there."""
    try:
        signature = from_base64(header, "Author-Signature", max_bytes=authorship.MAX_BYTES)
        authorship.key_of(signature)
    except MalformedError as error:
        raise AuthorSignatureError(f"this is no author's signature: {error}") from None
    return signature


def _tags(header: str | None) -> set[str]:
    return {tag.strip() for tag in header.split(",")} if header is not None else set()
