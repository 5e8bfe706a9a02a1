"""A worker that holds something else than it should is offered nothing until it is mended."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("drifted", sa.Text(), server_default="", nullable=False))


def downgrade() -> None:
    op.drop_column("workers", "drifted")
