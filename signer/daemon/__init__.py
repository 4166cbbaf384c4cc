"""The process: composition root, what is served, the open audit log, status."""

import gc
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from signer.daemon.app import build
from signer.daemon.process_limits import share_heap


def run(
    config_path: Path,
    *,
    on_ready: Callable[[], None] | None = None,
    override_audit: bool = False,
    development: bool = False,
) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code.

    ``development``: the policy's files are in force without an approval of officers.
    ``override_audit`` opens an audit log that is not whole, and records that.
    ``on_ready`` is called once, when health first says SERVING. Raises
    ConfigError and OperatorError if the start is refused.
    """
    share_heap()
    sys.setswitchinterval(0.0005)  # Python's default of 5 ms delays a worker's round trip
    with ExitStack() as refused:  # closes what a refused constructor leaves open
        appliance = build(
            config_path, refused, override_audit=override_audit, development=development
        )
        refused.pop_all()
    try:
        appliance.start()
        # What the start has made stays: it is not searched again for cycles, and what calls
        # make is searched more rarely. That is 4 % of the CPU of a call.
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 20, 20)
        appliance.serve(on_ready or (lambda: None))
    finally:
        appliance.stop()
    return 0
