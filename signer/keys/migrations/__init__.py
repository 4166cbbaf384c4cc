"""Alembic migrations of the registry; run by ``signer.keys.database``."""

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory


def versions() -> set[str]:
    """Returns the versions that this program knows."""
    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def run(connection: sa.Connection) -> None:
    """Brings a database up to the newest version."""
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "signer.keys:migrations")
    config.set_main_option("path_separator", "os")
    return config
