"""What lies beside the log's segments in its directory."""

from __future__ import annotations

KEY_FILE = "audit.pub.pem"
"""The public audit key."""
CHECKPOINTS = "checkpoints"
"""The folder of checkpoints: the newest, and one of every hour under its size."""
POLICIES = "policies"
"""The folder of every policy that was in force, under its SHA-256."""
