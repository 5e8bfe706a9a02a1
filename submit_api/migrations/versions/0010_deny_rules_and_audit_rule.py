"""An impersonation rule allows or denies, those before this allow; an audit event names the rule that it follows from."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "impersonation_rules", sa.Column("effect", sa.String(length=10), nullable=False, server_default="allow")
    )
    op.add_column("audit_events", sa.Column("rule", sa.String(length=100), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("audit_events", "rule")
    # Without the column a deny rule would read as one that allows.
    op.execute("DELETE FROM impersonation_rules WHERE effect <> 'allow'")
    op.drop_column("impersonation_rules", "effect")
