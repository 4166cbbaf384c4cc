"""The registry's tables; ``migrations`` builds what this describes.

Times are seconds since the epoch (UTC). ``kid`` and ``thumbprint`` follow from
the public key and the certificate; they are stored because deriving them for
ten thousand keys would be most of the time of loading them.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("facility", sa.String(63), nullable=False),
    sa.Column("key", sa.String(63), nullable=False),
    sa.Column("algorithm", sa.String(16), nullable=False),
    sa.UniqueConstraint("facility", "key"),
)

key_versions = sa.Table(
    "key_versions",
    metadata,
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
    # One public key under two names would make one signature two facilities'.
    sa.UniqueConstraint("thumbprint"),
    sa.CheckConstraint("number >= 1", name="number"),
)

revision = sa.Table(
    "revision",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("value", sa.BigInteger, nullable=False),
    sa.CheckConstraint("id = 1", name="one_row"),
)
