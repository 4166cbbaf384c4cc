"""Where else the private key of a version is: one token each was all until here."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Makes the table; a version stays where it was made."""
    op.create_table(
        "placements",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("version_id", sa.Integer, sa.ForeignKey("key_versions.id"), nullable=False),
        sa.Column("token", sa.String(32), nullable=False),
        sa.Column("cka_id", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("version_id", "token"),
        sa.UniqueConstraint("token", "cka_id"),
    )
    op.create_index("ix_placements_revision", "placements", ["revision"])


def downgrade() -> None:
    """Removes it: keys then sign only where they were made."""
    op.drop_table("placements")
