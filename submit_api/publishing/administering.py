"""The publishers that administrators make and remove. Each change and its audit event are one transaction."""

from __future__ import annotations

from integrity.errors import ConflictError, NotFoundError
from submit_api import audit
from submit_api.identity import Caller
from submit_api.models.people import PublisherRequest
from submit_api.publishing import runs
from submit_api.refusals import InvalidRequestError
from submit_api.registry import people, publishers
from submit_api.registry.records import Publisher
from submit_api.service import Service


async def add(service: Service, caller: Caller, wanted: PublisherRequest) -> Publisher:
    """Raises `InvalidRequestError` for an issuer that is not of CI, `ConflictError` for the same publisher again."""
    issuer = service.issuers.get(wanted.issuer)
    if issuer is None or not issuer.settings.ci:
        known = [found.settings.issuer for found in service.issuers.values() if found.settings.ci]
        raise InvalidRequestError(
            f"{wanted.issuer} is no issuer of CI in this service's settings; there are: {', '.join(known) or 'none'}"
        )
    if issuer.settings.ci == runs.GITHUB and ("/" in wanted.workflow or wanted.repository.count("/") != 1):
        raise InvalidRequestError(
            "GitHub's repository is OWNER/NAME, its workflow a file of .github/workflows: publish.yml"
        )
    publisher = Publisher(
        id=service.new_id(),
        issuer=wanted.issuer,
        repository=wanted.repository.lower(),
        workflow=wanted.workflow,
        environment=runs.environment(issuer.settings.ci, wanted.environment),
        ref=wanted.ref,
        repository_id=wanted.repository_id,
        owner_id=wanted.owner_id,
        principal=wanted.principal,
        archive_prefix=wanted.archive_prefix,
        created_at=service.now_us(),
        created_by=caller.principal,
        last_used_at=None,
    )
    async with service.database.write() as tx:
        earlier = await publishers.like(tx, publisher)
        if earlier is not None:
            raise ConflictError(f"this is publisher {earlier.id} already: remove it first to change it")
        await publishers.add(tx, publisher)
        await audit.accepted(
            tx, at=service.now_us(), caller=caller, action="publisher.add", about=f"publisher:{publisher.id}",
            detail=says(publisher),
        )  # fmt: skip
    return publisher


async def find(service: Service, publisher_id: str) -> Publisher:
    async with service.database.read() as tx:
        found = await publishers.find(tx, publisher_id)
    if found is None:
        raise NotFoundError(f"there is no publisher {publisher_id}")
    return found


async def remove(service: Service, caller: Caller, publisher_id: str) -> None:
    """With the tokens that were made by it."""
    async with service.database.write() as tx:
        publisher = await publishers.find(tx, publisher_id)
        if publisher is None:
            raise NotFoundError(f"there is no publisher {publisher_id}")
        await publishers.remove(tx, publisher_id)
        await people.revoke_tokens(tx, service.now_us(), publisher=publisher_id)
        await audit.accepted(
            tx, at=service.now_us(), caller=caller, action="publisher.remove", about=f"publisher:{publisher_id}",
            detail=f"{says(publisher)}; its tokens are revoked with it",
        )  # fmt: skip


def says(publisher: Publisher) -> str:
    return (
        f"{publisher.issuer} repository {publisher.repository} (id {publisher.repository_id or 'of the first use'}, "
        f"owner {publisher.owner_id or 'of the first use'}), workflow {publisher.workflow}, "
        f"environment {publisher.environment or 'any'}, ref {publisher.ref or 'any'}: "
        f"pushes {publisher.archive_prefix}… as {publisher.principal}"
    )
