"""Reads the daemon's files again: policy, certificates, and the log level of signer.yaml."""

import threading
from dataclasses import asdict
from pathlib import Path

from signer.api.control_service import ReloadChanges
from signer.api.tls import Certificates
from signer.config.models import LEVELS, Config, load_config
from signer.daemon.serving import Serving
from signer.errors import ConfigError
from signer.events import Events, ReloadEnded, ReloadRefused
from signer.observe.lines import LogLines
from signer.signing.request import Served


class Reloading:
    """Reloads while the daemon runs, from any thread."""

    def __init__(
        self,
        config_path: Path,
        config: Config,
        *,
        serving: Serving,
        served: Served,
        certificates: Certificates,
        lines: LogLines,
        events: Events,
    ) -> None:
        """``config`` is what the daemon was started with."""
        self._config_path, self._config = config_path, config
        self._log_level = config.log_level
        self._serving, self._served = serving, served
        self._certificates, self._lines, self._events = certificates, lines, events
        self._alone = threading.Lock()

    def reload(self) -> ReloadChanges:
        """Reads its files again; raises ConfigError with everything that is refused.

        Either all of it takes effect or nothing. But where officers decide the policy, a
        draft in its files, which is refused, does not hold up the rest. Of signer.yaml only
        the log level changes; other changed settings are named, and take a restart.
        """
        with self._alone:
            config = load_config(self._config_path)
            files_decide = self._serving.files_decide
            draft = self._serving.draft() if files_decide else None
            certificates = self._certificates.read()
            if draft is not None:
                self._serving.put(draft)
            changed = ReloadChanges(
                policy_changed=draft is not None,
                certificate_changed=self._certificates.use(certificates),
                log_level=config.log_level,
                log_level_changed=config.log_level != self._log_level,
                restart_needed=self._config.changed(config),
            )
            # The line is written under the level that lets more through.
            self._lines.set_level(min(config.log_level, self._log_level, key=LEVELS.index))
            sha256 = self._served.snapshot.policy.sha256
            self._events.emit(ReloadEnded(sha256, asdict(changed)))
            self._lines.set_level(config.log_level)
            self._log_level = config.log_level
            if not files_decide:
                self._serving.draft()
            return changed

    def by_signal(self) -> None:
        """Does the same; what is refused becomes an event."""
        try:
            self.reload()
        except ConfigError as error:
            self._events.emit(ReloadRefused(error.source, list(map(str, error.problems))))
