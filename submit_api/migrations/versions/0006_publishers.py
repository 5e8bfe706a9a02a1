"""Trusted publishers, the tokens of their issuers that were used, and which publisher a token of ours came by."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "publishers",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("issuer", sa.String(length=500), nullable=False),
        sa.Column("repository", sa.String(length=200), nullable=False),
        sa.Column("workflow", sa.String(length=200), nullable=False),
        sa.Column("environment", sa.String(length=255), nullable=False),
        sa.Column("ref", sa.String(length=255), nullable=False),
        sa.Column("repository_id", sa.String(length=20), nullable=False),
        sa.Column("owner_id", sa.String(length=20), nullable=False),
        sa.Column("principal", sa.String(length=100), nullable=False),
        sa.Column("archive_prefix", sa.String(length=200), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(length=100), nullable=False),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_publishers")),
        sa.UniqueConstraint(
            "issuer", "repository", "workflow", "environment", "ref", name=op.f("uq_publishers_issuer")
        ),
    )
    op.create_table(
        "used_oidc_tokens",
        sa.Column("digest", sa.String(length=128), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_used_oidc_tokens")),
    )
    op.create_index(op.f("ix_used_oidc_tokens_expires_at"), "used_oidc_tokens", ["expires_at"], unique=False)
    op.add_column("tokens", sa.Column("publisher", sa.String(length=32), nullable=False, server_default=""))
    op.add_column("tokens", sa.Column("via", sa.Text(), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("tokens", "via")
    op.drop_column("tokens", "publisher")
    op.drop_index(op.f("ix_used_oidc_tokens_expires_at"), table_name="used_oidc_tokens")
    op.drop_table("used_oidc_tokens")
    op.drop_table("publishers")
