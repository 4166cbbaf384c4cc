"""The fixtures of these tests."""

from tests.commands import run
from tests.unit.cli.operations_played import people, played

__all__ = ["people", "played", "run"]
