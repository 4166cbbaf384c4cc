"""Lets the tests of this folder import its modules, and those of tests/integration."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode adds no folder itself
sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
