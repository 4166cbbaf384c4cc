"""What the registry is accounted for by: the deployment's id, and the acts of single officers."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_PENDING = ("PROPOSED", "APPROVED", "EXECUTING", "WAITING", "FAILED")
_NOTE = (
    "it does not name the deployment, because it was proposed before the upgrade: propose it again"
)


def upgrade() -> None:
    """Makes the deployment's id, and ends the operations that cannot name it."""
    op.add_column("revision", sa.Column("deployment", sa.String(32)))
    counter = sa.table("revision", sa.column("deployment", sa.String))
    op.execute(sa.update(counter).values(deployment=uuid.uuid4().hex))
    operations = sa.table("operations", sa.column("state", sa.String), sa.column("note", sa.Text))
    op.execute(
        sa.update(operations)
        .where(operations.c.state.in_(_PENDING))
        .values(state="REJECTED", note=_NOTE)
    )
    op.create_table(
        "acts",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("act", sa.String(16), nullable=False),
        sa.Column("target", sa.String(200), nullable=False),
        sa.Column("officer", sa.String(2048), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
    )
    op.create_index("ix_acts_revision", "acts", ["revision"])


def downgrade() -> None:
    """Removes it again; the operations stay ended."""
    op.drop_table("acts")
    op.drop_column("revision", "deployment")
