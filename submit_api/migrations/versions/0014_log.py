"""The transparency log: leaves, and the roots of full tiles. What is on record already is written into it at the next start."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "log_leaves",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("entry", sa.LargeBinary(), nullable=False),
        sa.Column("release", sa.String(220), nullable=True),
        sa.Column("peaks", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("seq", name="pk_log_leaves"),
    )
    op.create_index("ix_log_leaves_release", "log_leaves", ["release"], unique=True)
    op.create_table(
        "log_keys",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_log_keys"),
    )
    op.create_table(
        "log_tiles",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_log_tiles"),
    )


def downgrade() -> None:
    op.drop_table("log_tiles")
    op.drop_table("log_keys")
    op.drop_index("ix_log_leaves_release", table_name="log_leaves")
    op.drop_table("log_leaves")
