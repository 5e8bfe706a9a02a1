"""A release may state the isolation that its launches need at least; those before this state none."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("releases", sa.Column("isolation", sa.String(length=10), nullable=True))


def downgrade() -> None:
    op.drop_column("releases", "isolation")
