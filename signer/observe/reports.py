"""Where the parts of the daemon report to: metrics are counted, log lines written.

A call that was refused or failed is one log line at level warning, any other at
info; lines carry ids, names, counts and times, never a payload.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from signer.errors import ConfigError, Reason
from signer.observe.gauges import LiveGauges, Reading
from signer.observe.logs import logger
from signer.observe.metrics import Metrics


class Reports:
    """Observer of calls, pools and the daemon."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self._log = logger()
        self._reasons: Sequence[str] | None = None

    def watch(self, read: Callable[[], Iterable[Reading]]) -> None:
        """Adds the gauges that are read when Prometheus asks."""
        self.metrics.registry.register(LiveGauges(read))

    # --- calls -----------------------------------------------------------------------------

    def call_done(
        self, method: str, code: str, reason: str, seconds: float, notes: Mapping[str, object]
    ) -> None:
        self.metrics.request(method, code, seconds)
        write = self._log.info if reason == "ok" else self._log.warning
        write("call", method=method, code=code, reason=reason, seconds=round(seconds, 6), **notes)

    def our_bug(self, method: str, error: Exception, notes: Mapping[str, object]) -> None:
        """A defect: its type and places, for its text could quote a payload."""
        places = [
            f"{Path(frame.filename).name}:{frame.lineno}"
            for frame in traceback.extract_tb(error.__traceback__)
        ]
        self._log.error(
            "bug",
            method=method,
            reason=Reason.INTERNAL,
            error=type(error).__name__,
            places=places,
            **notes,
        )

    # --- tokens ----------------------------------------------------------------------------

    def stage(self, name: str, seconds: float) -> None:
        self.metrics.stage(name, seconds)

    def chunk_done(self, token: str, busy: float, items: int, checked: int, wrong: int) -> None:
        self.metrics.chunk_done(token, busy, items, checked, wrong)
        if wrong:
            self._log.error("wrong_signatures", token=token, wrong=wrong, items=items)

    def worker_left(self, token: str, cause: str, text: str) -> None:
        self.metrics.worker_left(token, cause)
        self._log.warning("worker_left", token=token, cause=cause, text=text)

    def login(self, token: str, result: str) -> None:
        self.metrics.login(token, result)
        self._log.info("login", token=token, result=result)

    # --- the daemon ------------------------------------------------------------------------

    def started(self, address: str, policy_sha256: str) -> None:
        self._log.info("started", address=address, policy_sha256=policy_sha256)

    def stopped(self) -> None:
        self._log.info("stopped")

    def readiness(self, reasons: Sequence[str]) -> None:
        """Logs a change, not a state."""
        if reasons != self._reasons:
            self._reasons = list(reasons)
            if reasons:
                self._log.warning("not_ready", reasons=self._reasons)
            else:
                self._log.info("ready")

    def reloaded(self, policy_sha256: str, policy_changed: bool, certificate_changed: bool) -> None:
        self._log.info(
            "reloaded",
            policy_sha256=policy_sha256,
            policy_changed=policy_changed,
            certificate_changed=certificate_changed,
        )

    def reload_refused(self, error: ConfigError) -> None:
        problems = [f"{each.field}: {each.description}" for each in error.problems]
        self._log.error("reload_refused", source=error.source, problems=problems)

    def keys_changed(self, versions: int, revision: int) -> None:
        self._log.info("keys_changed", versions=versions, revision=revision)

    def registry_unreadable(self, error: Exception) -> None:
        self._log.error("registry_unreadable", text=str(error))
