"""A release may have its author's own signature, which the service cannot make."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("releases", sa.Column("author", sa.LargeBinary(), nullable=True))


def downgrade() -> None:
    op.drop_column("releases", "author")
