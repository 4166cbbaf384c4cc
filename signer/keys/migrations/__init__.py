"""Alembic migrations of the registry; run by ``signer.keys.registry``."""
