"""Which release was active when, so that a rollback knows where to; and by whom and why one was revoked. Until now every
push activated its release: so it is recorded; what was activated by hand in between is in the audit log only."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    made = op.create_table(
        "activations",
        sa.Column("archive", sa.String(length=200), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("was", sa.BigInteger(), nullable=True),
        sa.Column("before", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("principal", sa.String(length=100), nullable=False),
        sa.ForeignKeyConstraint(["archive"], ["archives.name"], name=op.f("fk_activations_archive_archives")),
        sa.PrimaryKeyConstraint("archive", "seq", name=op.f("pk_activations")),
    )
    op.add_column("archives", sa.Column("activation", sa.BigInteger(), nullable=False, server_default="0"))
    # The first launch of a run is asked for with every launch: of a run of thousands it is to be the first row read.
    op.drop_index("ix_launches_dag_id_run_id", table_name="launches")
    op.create_index("ix_launches_dag_id_run_id", "launches", ["dag_id", "run_id", "created_at"], unique=False)
    op.add_column("releases", sa.Column("revoked_by", sa.String(length=100), nullable=True))
    op.add_column("releases", sa.Column("revoke_reason", sa.Text(), nullable=False, server_default=""))
    _record(op.get_bind(), made)


def _record(bind: sa.Connection, activations: sa.Table) -> None:
    meta = sa.MetaData()
    releases = sa.Table("releases", meta, autoload_with=bind)
    archives = sa.Table("archives", meta, autoload_with=bind)
    latest: dict[str, dict[str, Any]] = {}
    rows = []
    found = sa.select(releases.c.archive, releases.c.number, releases.c.created_at, releases.c.submitted_by)
    for archive, number, at, principal in bind.execute(found.order_by(releases.c.archive, releases.c.number)):
        was, seq = (latest[archive]["number"], latest[archive]["seq"]) if archive in latest else (None, 0)
        row = {"archive": archive, "seq": seq + 1, "number": number, "was": was, "before": seq, "at": at}
        latest[archive] = {**row, "principal": principal}
        rows.append(latest[archive])
    for name, active in bind.execute(sa.select(archives.c.name, archives.c.active)).all():
        last = latest[name]
        if active is not None and active != last["number"]:
            last = {**last, "seq": last["seq"] + 1, "number": active, "was": last["number"], "before": last["seq"]}
            rows.append(last)
        bind.execute(sa.update(archives).where(archives.c.name == name).values(activation=last["seq"]))
    if rows:
        bind.execute(sa.insert(activations), rows)


def downgrade() -> None:
    op.drop_index("ix_launches_dag_id_run_id", table_name="launches")
    op.create_index("ix_launches_dag_id_run_id", "launches", ["dag_id", "run_id"], unique=False)
    op.drop_column("releases", "revoke_reason")
    op.drop_column("releases", "revoked_by")
    op.drop_column("archives", "activation")
    op.drop_table("activations")
