"""The tokens that workers join with."""

from __future__ import annotations

from sqlalchemy import delete, or_, update

from submit_api.registry.database import Transaction
from submit_api.registry.records import Invitation, columns, record
from submit_api.registry.tables import InvitationRow


async def find(tx: Transaction, token_id: str) -> Invitation | None:
    row = await tx.session.get(InvitationRow, token_id)
    return record(Invitation, row) if row else None


async def add(tx: Transaction, found: Invitation) -> None:
    tx.session.add(InvitationRow(**columns(found)))
    await tx.session.flush()


async def use(tx: Transaction, token_id: str, used_by: str, now_us: int) -> None:
    await tx.session.execute(
        update(InvitationRow).where(InvitationRow.token_id == token_id).values(used_at=now_us, used_by=used_by)
    )


async def withdraw(tx: Transaction, worker: str) -> None:
    """All of a worker: nobody joins with them any more."""
    await tx.session.execute(delete(InvitationRow).where(InvitationRow.worker == worker))


async def forget(tx: Transaction, before_us: int) -> None:
    """Those that ended before: the audit log has what they did."""
    ended = or_(InvitationRow.expires_at < before_us, InvitationRow.used_at < before_us)
    await tx.session.execute(delete(InvitationRow).where(ended))
