"""Officers, their operations, suspensions, and all the times of a key version."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds what dual control needs; keys and certificates stay as they are."""
    for column in (
        sa.Column("deactivate_at", sa.Double),
        sa.Column("destroy_at", sa.Double),
        sa.Column("came_from", sa.String(32)),
        sa.Column("request", sa.Text),
        sa.Column("revision", sa.BigInteger, nullable=False, server_default="0"),
    ):
        op.add_column("key_versions", column)
    op.create_index("ix_key_versions_revision", "key_versions", ["revision"])
    op.add_column("revision", sa.Column("policy", sa.String(64)))
    for name in ("policy_since", "officers_since"):
        column = sa.Column(name, sa.BigInteger, nullable=False, server_default="0")
        op.add_column("revision", column)
    op.create_table(
        "officers",
        sa.Column("principal", sa.String(2048), primary_key=True),
        sa.Column("certificate", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "suspensions",
        sa.Column("scope", sa.String(16), primary_key=True),
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("since", sa.Double, nullable=False),
        sa.Column("officer", sa.String(2048), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_table(
        "documents",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("content", sa.LargeBinary, nullable=False),
    )
    _operations()


def _operations() -> None:
    op.create_table(
        "operations",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("proposed_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("appliance", sa.String(200)),
        sa.Column("done", sa.Integer, nullable=False),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("result", sa.Text),
        sa.Column("changed_at", sa.Double, nullable=False),
        sa.Column("ended_revision", sa.BigInteger),
        sa.Column("recorded", sa.Boolean, nullable=False),
    )
    op.create_index("ix_operations_state", "operations", ["state"])
    op.create_table(
        "signatures",
        sa.Column("operation", sa.String(36), sa.ForeignKey("operations.id"), primary_key=True),
        sa.Column("officer", sa.String(2048), primary_key=True),
        sa.Column("signature", sa.LargeBinary, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
    )


def downgrade() -> None:
    """Removes it again."""
    for table in ("signatures", "operations", "documents", "suspensions", "officers"):
        op.drop_table(table)
    for column in ("officers_since", "policy_since", "policy"):
        op.drop_column("revision", column)
    op.drop_index("ix_key_versions_revision", "key_versions")
    for column in ("revision", "request", "came_from", "destroy_at", "deactivate_at"):
        op.drop_column("key_versions", column)
