"""Launches may be reserved for a task instance of Airflow's, by a set of releases, and are supervised then.

One try of a task is still launched once, unless Airflow counts: it queues the same try again. Going back, reservations go: an
older service would offer them to everybody.
"""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

ADDED: tuple[sa.Column[Any], ...] = (
    sa.Column("supervised", sa.Boolean(), nullable=False, server_default=sa.false()),
    sa.Column("newest", sa.Boolean(), nullable=False, server_default=sa.false()),
    sa.Column("task_instance", sa.String(length=36), nullable=True),
    sa.Column("queueing", sa.String(length=128), nullable=True),
    sa.Column("release_set", sa.String(length=128), nullable=True),
    sa.Column("valid_until", sa.BigInteger(), nullable=True),
)
TRY = ["dag_id", "task_id", "run_id", "map_index", "try_number"]
ONE_TRY, QUEUED = "uq_launches_dag_id", "ix_launches_state_queue_created_at"
UNIQUE = (
    ("ix_launches_try", TRY, "supervised = 0", "NOT supervised"),
    ("ix_launches_newest", ["task_instance"], "newest = 1", "newest"),
)
OTHERS = ("ix_launches_task_instance_state", "ix_launches_state_valid_until")
KEY = "ix_launches_task_instance_queueing"


def upgrade() -> None:
    for column in ADDED:
        op.add_column("launches", column.copy())
    _without_children(_unconstrained)
    for name, columns, sqlite, postgresql in UNIQUE:
        op.create_index(
            name, "launches", columns, unique=True, sqlite_where=sa.text(sqlite), postgresql_where=sa.text(postgresql)
        )
    op.create_index(KEY, "launches", ["task_instance", "queueing"], unique=True)
    op.create_index(OTHERS[0], "launches", ["task_instance", "state"])
    op.create_index(OTHERS[1], "launches", ["state", "valid_until"])
    op.drop_index(QUEUED, table_name="launches")
    op.create_index(QUEUED, "launches", ["state", "queue", "supervised", "created_at", "id"])
    op.create_table(
        "release_sets",
        sa.Column("hex", sa.String(length=128), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("hex", name=op.f("pk_release_sets")),
    )
    op.create_index("ix_release_sets_used_at", "release_sets", ["used_at"])


def downgrade() -> None:
    op.drop_index("ix_release_sets_used_at", table_name="release_sets")
    op.drop_table("release_sets")
    op.execute("DELETE FROM launches WHERE supervised")
    for name in (*(name for name, *_ in UNIQUE), KEY, *OTHERS, QUEUED):
        op.drop_index(name, table_name="launches")
    op.create_index(QUEUED, "launches", ["state", "queue", "created_at", "id"])
    _without_children(_constrained)
    for column in reversed(ADDED):
        op.drop_column("launches", column.name)


def _unconstrained() -> None:
    with op.batch_alter_table("launches") as table:
        table.drop_constraint(ONE_TRY, type_="unique")


def _constrained() -> None:
    with op.batch_alter_table("launches") as table:
        table.create_unique_constraint(ONE_TRY, TRY)


def _without_children(work: Callable[[], None]) -> None:
    """SQLite makes the table anew for a constraint, and no row may name one of a table that goes."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    if sqlite:
        op.execute("CREATE TEMPORARY TABLE kept_xcoms AS SELECT * FROM xcoms")
        op.execute("DELETE FROM xcoms")
    work()
    if sqlite:
        op.execute("INSERT INTO xcoms SELECT * FROM kept_xcoms")
        op.execute("DROP TABLE kept_xcoms")
