"""Workers join with a token that is good for one use, and sign their requests from then on."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("request_key", sa.LargeBinary(), nullable=True))
    op.add_column("workers", sa.Column("request_key_id", sa.String(64), nullable=True))
    op.create_index("ix_workers_request_key_id", "workers", ["request_key_id"], unique=True)
    op.create_table(
        "worker_invitations",
        sa.Column("token_id", sa.String(12), nullable=False),
        sa.Column("worker", sa.String(100), nullable=False),
        sa.Column("queues", sa.JSON(), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("secret_hash", sa.String(128), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(100), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=True),
        sa.Column("used_by", sa.String(128), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("token_id", name="pk_worker_invitations"),
    )
    op.create_index("ix_worker_invitations_worker", "worker_invitations", ["worker"])


def downgrade() -> None:
    """Who joined by a key has no token: such workers are enrolled again."""
    op.drop_table("worker_invitations")
    op.drop_index("ix_workers_request_key_id", table_name="workers")
    op.drop_column("workers", "request_key_id")
    op.drop_column("workers", "request_key")
