"""A launch keeps the digest of its log as the launcher signed it; those before this have none."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("launches", sa.Column("log_digest", sa.String(length=135), nullable=True))


def downgrade() -> None:
    op.drop_column("launches", "log_digest")
