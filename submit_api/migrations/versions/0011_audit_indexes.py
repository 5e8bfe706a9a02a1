"""Pages of the audit log by object, principal, action, verdict and time, each by an index."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

COLUMNS = ("object", "principal", "action", "verdict", "at")


def upgrade() -> None:
    op.drop_index("ix_audit_events_object", table_name="audit_events")
    op.drop_index("ix_audit_events_principal", table_name="audit_events")
    for column in COLUMNS:
        op.create_index(f"ix_audit_events_{column}_seq", "audit_events", [column, "seq"])
    op.create_index("ix_audit_events_principal_verdict_seq", "audit_events", ["principal", "verdict", "seq"])


def downgrade() -> None:
    op.drop_index("ix_audit_events_principal_verdict_seq", table_name="audit_events")
    for column in COLUMNS:
        op.drop_index(f"ix_audit_events_{column}_seq", table_name="audit_events")
    op.create_index("ix_audit_events_object", "audit_events", ["object"])
    op.create_index("ix_audit_events_principal", "audit_events", ["principal"])
