"""The registry's tables; ``migrations`` builds what this describes.

Times are seconds since the epoch (UTC). ``kid`` and ``thumbprint`` follow from the public key
and the certificate; deriving them for ten thousand keys would be most of the time of loading.
"""

import sqlalchemy as sa

VERSION = "0006"  # the newest migration: what the tables of this module are

PLACED, REMOVED = "PLACED", "REMOVED"
"""States of a placement; one that was removed stays as a row, so that daemons notice."""

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
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
    sa.Column("deactivate_at", sa.Double),
    sa.Column("destroy_at", sa.Double),
    sa.Column("came_from", sa.String(32)),
    sa.Column("request", sa.Text),
    # The revision that wrote it last: a daemon reads the rows after its own revision.
    sa.Column("revision", sa.BigInteger, nullable=False, server_default="0", index=True),
    sa.UniqueConstraint("key_id", "number"),
    sa.UniqueConstraint("token", "cka_id"),
    # One public key under two names would make one signature two facilities'.
    sa.UniqueConstraint("thumbprint"),
    sa.CheckConstraint("number >= 1", name="number"),
)

# The tokens that hold a version's private key beside the one where it was made.
placements = sa.Table(
    "placements",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("version_id", sa.Integer, sa.ForeignKey("key_versions.id"), nullable=False),
    sa.Column("token", sa.String(32), nullable=False),
    sa.Column("cka_id", sa.LargeBinary, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),  # see PLACED
    # The revision that wrote it last: a daemon reads the rows after its own revision.
    sa.Column("revision", sa.BigInteger, nullable=False, index=True),
    sa.UniqueConstraint("version_id", "token"),
    sa.UniqueConstraint("token", "cka_id"),
)

# The private keys of versions that no token holds, each wrapped by a wrapping key.
wrapped_keys = sa.Table(
    "wrapped_keys",
    metadata,
    sa.Column("version_id", sa.Integer, sa.ForeignKey("key_versions.id"), primary_key=True),
    sa.Column("blob", sa.LargeBinary, nullable=False),
    sa.Column("sha256", sa.LargeBinary, nullable=False),
    sa.Column("mechanism", sa.String(32), nullable=False),
    sa.Column("wrapping_key", sa.String(36), nullable=False, index=True),
    # The revision that wrote it last: a daemon reads the rows after its own revision.
    sa.Column("revision", sa.BigInteger, nullable=False, index=True),
    # What the key has signed when it was wrapped anew; see signer.officers.possession.
    sa.Column("proof", sa.LargeBinary),
)

# Wrapping keys and the tokens that hold them; the CKA_ID follows from the id.
wrapping_keys = sa.Table(
    "wrapping_keys",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("token", sa.String(32), primary_key=True),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("destroyed", sa.Boolean, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
)

revision = sa.Table(
    "revision",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("value", sa.BigInteger, nullable=False),
    # The policy in force, a row of `documents`; NULL before the first.
    sa.Column("policy", sa.String(64)),
    # The revisions that put that policy, and these officers, in force.
    sa.Column("policy_since", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("officers_since", sa.BigInteger, nullable=False, server_default="0"),
    # The random id of the appliances that share this registry; approvals name it.
    sa.Column("deployment", sa.String(32)),
    sa.CheckConstraint("id = 1", name="one_row"),
)

officers = sa.Table(
    "officers",
    metadata,
    sa.Column("principal", sa.String(2048), primary_key=True),
    sa.Column("certificate", sa.LargeBinary, nullable=False),
)

suspensions = sa.Table(
    "suspensions",
    metadata,
    sa.Column("scope", sa.String(16), primary_key=True),
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("since", sa.Double, nullable=False),
    sa.Column("officer", sa.String(2048), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)

# What operations name by hash: policies, lists of facilities, rotation plans.
documents = sa.Table(
    "documents",
    metadata,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("content", sa.LargeBinary, nullable=False),
)

operations = sa.Table(
    "operations",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("kind", sa.String(32), nullable=False),
    # The canonical bytes that officers sign (signer.officers.approval).
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Column("proposed_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    # The origin of the appliance that executes it; only that one completes it.
    sa.Column("appliance", sa.String(200)),
    sa.Column("done", sa.Integer, nullable=False),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("result", sa.Text),  # JSON
    sa.Column("changed_at", sa.Double, nullable=False),
    # The revision of its last transaction: the order in which decisions took effect.
    sa.Column("ended_revision", sa.BigInteger),
    # Whether the end is in the log of the appliance that executed it.
    sa.Column("recorded", sa.Boolean, nullable=False),
)

signatures = sa.Table(
    "signatures",
    metadata,
    sa.Column("operation", sa.String(36), sa.ForeignKey("operations.id"), primary_key=True),
    sa.Column("officer", sa.String(2048), primary_key=True),
    sa.Column("signature", sa.LargeBinary, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)

# What single officers stopped: rows, so that every appliance of the registry knows them.
acts = sa.Table(
    "acts",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False, index=True),
    sa.Column("act", sa.String(16), nullable=False),
    sa.Column("target", sa.String(200), nullable=False),
    sa.Column("officer", sa.String(2048), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)
