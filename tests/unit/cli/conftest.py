"""The fixtures of ``operations_played``."""

from __future__ import annotations

from tests.unit.cli.operations_played import people, played, run

__all__ = ["people", "played", "run"]
