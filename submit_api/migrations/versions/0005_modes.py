"""Archives, secrets and queues have an owner, a group and a mode; a dag_id can be given to another archive.

Archives stay what they were to their owner and group (0o770). A secret belongs to who stored it last (0o600): it still reaches
only whom it was granted to.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("archives", sa.Column("mode", sa.Integer(), nullable=False, server_default=str(0o770)))
    for name in ("owner", "group"):
        op.add_column("secrets", sa.Column(name, sa.String(length=100), nullable=False, server_default=""))
    op.add_column("secrets", sa.Column("mode", sa.Integer(), nullable=False, server_default=str(0o600)))
    secrets = sa.table("secrets", sa.column("owner"), sa.column("group"), sa.column("updated_by"))
    op.execute(secrets.update().values({"owner": secrets.c.updated_by, "group": secrets.c.updated_by}))
    op.add_column("dags", sa.Column("transferred_at", sa.BigInteger(), nullable=True))
    op.create_table(
        "queues",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("owner", sa.String(length=100), nullable=False),
        sa.Column("group", sa.String(length=100), nullable=False),
        sa.Column("mode", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_queues")),
    )


def downgrade() -> None:
    op.drop_table("queues")
    op.drop_column("dags", "transferred_at")
    for name in ("mode", "group", "owner"):
        op.drop_column("secrets", name)
    op.drop_column("archives", "mode")
