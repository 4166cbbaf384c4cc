"""What operators see of the daemon: metrics, log lines, alarms, traces and the status page."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from signer.errors import OperatorError

if TYPE_CHECKING:
    from signer.config.models import TracingConfig
    from signer.observe.lines import LogLines
    from signer.observe.tracing import Tracing


def open_tracing(
    settings: TracingConfig | None,
    instance: str,
    lines: LogLines,
    on_dropped: Callable[[int], object] = lambda _: None,
) -> Tracing | None:
    """Returns the tracing of the appliance ``instance``; None if it is not configured.

    What fails in it becomes one of the ``lines``; ``on_dropped`` gets the number of spans that
    the collector did not take. Raises OperatorError if its packages, which
    are optional, are missing.
    """
    if settings is None:
        return None
    if find_spec("opentelemetry") is None:
        raise OperatorError(
            "tracing is configured, but its packages are not installed: install "
            "signer-appliance[tracing], or remove `tracing` from the configuration"
        )
    from signer.observe.tracing import Tracing  # noqa: PLC0415 - optional, as above

    return Tracing(settings, instance, lines, on_dropped)
