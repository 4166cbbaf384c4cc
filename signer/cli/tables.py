"""Moved to ``signer.cli.output``."""

from __future__ import annotations

from signer.cli.output import print_table, print_values

__all__ = ["print_table", "print_values"]
