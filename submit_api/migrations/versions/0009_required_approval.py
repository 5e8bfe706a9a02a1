"""A group can ask for approvals, and a release waits for them; what was recorded before this waits for none. And a release
that nothing uses any more can be retired: its row stays, its bytes go."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("groups", sa.Column("approvals", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("releases", sa.Column("approvals", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("releases", sa.Column("approval_groups", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("releases", sa.Column("approved_by", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("releases", sa.Column("approved_at", sa.BigInteger(), nullable=True))
    op.add_column("releases", sa.Column("unsafe_alone", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("releases", sa.Column("retired_at", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    """What waited, or was retired, is not launched by the version before either, which knows no other word than revoked."""
    releases = sa.table(
        "releases",
        sa.column("approvals", sa.BigInteger()),
        sa.column("approved_at", sa.BigInteger()),
        sa.column("revoked_at", sa.BigInteger()),
        sa.column("created_at", sa.BigInteger()),
        sa.column("revoke_reason", sa.Text()),
    )
    waiting = releases.c.approvals > 0, releases.c.approved_at.is_(None), releases.c.revoked_at.is_(None)
    reason = "it waited for approval when the service was set back to a version without approvals"
    op.execute(sa.update(releases).where(*waiting).values(revoked_at=releases.c.created_at, revoke_reason=reason))
    retired = sa.column("retired_at", sa.BigInteger())
    op.execute(
        sa.update(releases)
        .where(retired.is_not(None), releases.c.revoked_at.is_(None))
        .values(revoked_at=retired, revoke_reason="its bytes were retired")
    )
    for name in ("retired_at", "unsafe_alone", "approved_at", "approved_by", "approval_groups", "approvals"):
        op.drop_column("releases", name)
    op.drop_column("groups", "approvals")
