"""Private keys that are wrapped in the registry: all were objects of a token until here."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Makes the tables; keys stay where they were made."""
    op.create_table(
        "wrapped_keys",
        sa.Column("version_id", sa.Integer, sa.ForeignKey("key_versions.id"), primary_key=True),
        sa.Column("blob", sa.LargeBinary, nullable=False),
        sa.Column("sha256", sa.LargeBinary, nullable=False),
        sa.Column("mechanism", sa.String(32), nullable=False),
        sa.Column("wrapping_key", sa.String(36), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_wrapped_keys_wrapping_key", "wrapped_keys", ["wrapping_key"])
    op.create_index("ix_wrapped_keys_revision", "wrapped_keys", ["revision"])
    op.create_table(
        "wrapping_keys",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("token", sa.String(32), primary_key=True),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("destroyed", sa.Boolean, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Removes them: wrapped keys sign no longer."""
    op.drop_table("wrapped_keys")
    op.drop_table("wrapping_keys")
