"""What a key has signed when it was wrapped anew: until here nothing showed that it could."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Adds the column; what was wrapped before is in the log of each appliance."""
    op.add_column("wrapped_keys", sa.Column("proof", sa.LargeBinary))


def downgrade() -> None:
    """Removes it: operations that wrap keys anew then account for any bytes."""
    op.drop_column("wrapped_keys", "proof")
