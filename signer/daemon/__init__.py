"""The process: composition root, what is served, the open audit log, status."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def run(
    config_path: Path,
    *,
    on_ready: Callable[[], None] | None = None,
    override_audit: bool = False,
    development: bool = False,
) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code. See ``app.run``."""
    # gRPC's core writes its own lines to stderr, one for each failed handshake too: strangers
    # could fill a log that is one JSON object a line. It reads the variable when it is loaded.
    # Set it to see those lines while looking for a fault.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from signer.daemon import app  # noqa: PLC0415 - after the variable is set

    return app.run(
        config_path, on_ready=on_ready, override_audit=override_audit, development=development
    )
