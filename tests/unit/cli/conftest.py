"""Lets the tests of this folder import ``operations_played``, and gives them its fixtures."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode adds no folder itself

from operations_played import people, played, run

__all__ = ["people", "played", "run"]
