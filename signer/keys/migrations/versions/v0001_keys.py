"""Keys, their versions, and the revision counter."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Builds the tables and starts the counter at 0."""
    op.create_table(
        "keys",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("facility", sa.String(63), nullable=False),
        sa.Column("key", sa.String(63), nullable=False),
        sa.Column("algorithm", sa.String(16), nullable=False),
        sa.UniqueConstraint("facility", "key"),
    )
    op.create_table(
        "key_versions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("key_id", sa.Integer, sa.ForeignKey("keys.id"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("token", sa.String(32), nullable=False),
        sa.Column("cka_id", sa.LargeBinary, nullable=False),
        sa.Column("spki", sa.LargeBinary, nullable=False),
        sa.Column("certificate", sa.LargeBinary),
        sa.Column("kid", sa.LargeBinary, nullable=False),
        sa.Column("thumbprint", sa.String(43), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("activate_at", sa.Double),
        sa.Column("sign_until", sa.Double),
        sa.UniqueConstraint("key_id", "number"),
        sa.UniqueConstraint("token", "cka_id"),
        sa.UniqueConstraint("thumbprint"),
        sa.CheckConstraint("number >= 1", name="number"),
    )
    counter = op.create_table(
        "revision",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.CheckConstraint("id = 1", name="one_row"),
    )
    op.bulk_insert(counter, [{"id": 1, "value": 0}])


def downgrade() -> None:
    """Removes everything."""
    op.drop_table("revision")
    op.drop_table("key_versions")
    op.drop_table("keys")
