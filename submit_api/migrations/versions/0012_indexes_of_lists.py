"""Lists by pages, and what a push and a launch look up, each by an index: none takes longer where there are more rows."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

ADDED = (
    ("ix_archives_owner_name", "archives", ["owner", "name"]),
    ("ix_archives_group_name", "archives", ["group", "name"]),
    ("ix_releases_digest_archive_number", "releases", ["digest", "archive", "number"]),
    ("ix_launches_created_at", "launches", ["created_at", "id"]),
    ("ix_launches_state_created_at", "launches", ["state", "created_at", "id"]),
    ("ix_launches_principal_created_at", "launches", ["principal", "created_at", "id"]),
    ("ix_launches_archive_created_at", "launches", ["archive", "created_at", "id"]),
    ("ix_launches_dag_id_archive_created_at", "launches", ["dag_id", "archive", "created_at", "id"]),
    ("ix_launches_dag_id_archive_state_created_at", "launches", ["dag_id", "archive", "state", "created_at", "id"]),
)
OPEN = "ix_archives_open"
QUEUED = "ix_launches_state_queue_created_at"


def upgrade() -> None:
    op.drop_index("ix_archives_owner", table_name="archives")
    op.drop_index("ix_releases_digest", table_name="releases")
    op.drop_index(QUEUED, table_name="launches")
    op.create_index(QUEUED, "launches", ["state", "queue", "created_at", "id"])
    for name, table, columns in ADDED:
        op.create_index(name, table, columns)
    seen_by_all = sa.text("(mode & 4) != 0")
    op.create_index(OPEN, "archives", ["name"], sqlite_where=seen_by_all, postgresql_where=seen_by_all)


def downgrade() -> None:
    op.drop_index(OPEN, table_name="archives")
    for name, table, _ in ADDED:
        op.drop_index(name, table_name=table)
    op.drop_index(QUEUED, table_name="launches")
    op.create_index(QUEUED, "launches", ["state", "queue", "created_at"])
    op.create_index("ix_archives_owner", "archives", ["owner"])
    op.create_index("ix_releases_digest", "releases", ["digest"])
