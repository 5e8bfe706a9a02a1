"""Trusted publishers, and the tokens of their issuers that were used up."""

from __future__ import annotations

from sqlalchemy import delete, select, update

from submit_api.registry.database import Transaction
from submit_api.registry.records import Publisher, columns, record
from submit_api.registry.tables import PublisherRow, TokenRow, UsedTokenRow


async def find(tx: Transaction, publisher_id: str) -> Publisher | None:
    row = await tx.session.get(PublisherRow, publisher_id)
    return record(Publisher, row) if row else None


async def listed(tx: Transaction) -> list[Publisher]:
    rows = await tx.session.scalars(select(PublisherRow).order_by(PublisherRow.created_at, PublisherRow.id))
    return [record(Publisher, row) for row in rows]


async def of_repository(tx: Transaction, issuer: str, repository: str) -> list[Publisher]:
    query = select(PublisherRow).where(PublisherRow.issuer == issuer, PublisherRow.repository == repository)
    return [record(Publisher, row) for row in await tx.session.scalars(query.order_by(PublisherRow.id))]


async def like(tx: Transaction, found: Publisher) -> Publisher | None:
    """The one for the same runs."""
    query = select(PublisherRow).where(
        PublisherRow.issuer == found.issuer,
        PublisherRow.repository == found.repository,
        PublisherRow.workflow == found.workflow,
        PublisherRow.environment == found.environment,
        PublisherRow.ref == found.ref,
    )
    row = await tx.session.scalar(query)
    return record(Publisher, row) if row else None


async def add(tx: Transaction, found: Publisher) -> None:
    tx.session.add(PublisherRow(**columns(found)))
    await tx.session.flush()


async def remove(tx: Transaction, publisher_id: str) -> None:
    await tx.session.execute(delete(PublisherRow).where(PublisherRow.id == publisher_id))


async def note_use(tx: Transaction, publisher_id: str, repository_id: str, owner_id: str, now_us: int) -> None:
    """Used now by this repository: pinned to it, or, as no other one matches it, still pinned to it."""
    await tx.session.execute(
        update(PublisherRow)
        .where(PublisherRow.id == publisher_id)
        .values(last_used_at=now_us, repository_id=repository_id, owner_id=owner_id)
    )


async def use(tx: Transaction, digest: str, expires_at: int, now_us: int) -> bool:
    """Use a token up; whether it was not yet. Those that have expired are forgotten: they are refused without this."""
    await tx.session.execute(delete(UsedTokenRow).where(UsedTokenRow.expires_at <= now_us))
    if await tx.session.get(UsedTokenRow, digest) is not None:
        return False
    tx.session.add(UsedTokenRow(digest=digest, expires_at=expires_at))
    await tx.session.flush()
    return True


async def forget_tokens(tx: Transaction, before_us: int) -> None:
    """The rows of exchanged tokens that ended before."""
    await tx.session.execute(delete(TokenRow).where(TokenRow.publisher != "", TokenRow.expires_at < before_us))
