"""Development appliances for tests: provisioned once a run, copied for each test."""

import fcntl
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar

import yaml

from signer.tools.dev import texts
from signer.tools.dev.appliance import DevAppliance
from tests.daemon import get
from tests.fork_server import fork_server
from tests.ports import free_ports

SAYING_WHERE = ("dev.json", "signer.yaml", "softhsm2*.conf", "client-*.yaml")
"""The files of an appliance that name its folder or its ports."""


class Appliance(DevAppliance):
    """What tests use: besides ``dir``, ``dev``, ``client(name)``, ``process``, ``start``,
    ``stop`` and ``log`` of DevAppliance, its pages, keys and configuration.
    """

    template: ClassVar[Path]
    """What ``init`` copies. All processes of one run share it; the first to ask makes it."""
    made_with: ClassVar[tuple[str, ...]] = ()
    """Arguments of the template, which is another one for each."""

    def init(self) -> None:
        """Provisions the folder; a new one as a copy, with its keys, log and certificates.

        Of two appliances only the folder and the ports differ: a test that needs other keys
        provisions a DevAppliance.
        """
        new = not self.dir.exists()
        if new:
            self._copy()
        if self._arguments or not new:
            super().init()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The daemon's log: each line is JSON, after what `dev up` says to people."""
        prose = re.compile(r"made \d+ of \d+ keys|it listens at .*|client files in .*")
        text = self.log.read_text().splitlines()
        return [json.loads(line) for line in text if not prose.fullmatch(line)]

    def _launch(self, command: list[str], log: IO[str]) -> subprocess.Popen[str]:
        program, *arguments = command
        if program != sys.executable:
            return super()._launch(command, log)
        return fork_server().start(
            arguments, stdout=subprocess.PIPE, stderr=log, env=self._environment
        )

    def _copy(self) -> None:
        template = self.template.with_name("".join((self.template.name, *self.made_with)))
        made = DevAppliance(template, self.made_with)
        with template.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (made.dir / "dev.json").exists():  # the last of its files
                made.init()
        shutil.copytree(made.dir, self.dir)
        moved = {str(made.dir): str(self.dir)}
        config = yaml.safe_load((made.dir / "signer.yaml").read_text())
        for name, port in zip(("listen", "metrics"), free_ports(), strict=True):
            moved[str(config[name])] = f"127.0.0.1:{port}"
        for path in (path for pattern in SAYING_WHERE for path in self.dir.glob(pattern)):
            text = path.read_text()
            for old, new in moved.items():
                text = text.replace(old, new)
            path.write_text(text)

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a page of the metrics port."""
        return get(self.dev["metrics"] + path)

    def key(self, name: str) -> dict[str, Any]:
        """What dev.json says of one key; ``name`` may be short: "01-001/records"."""
        facility, _, short = name.partition("/")
        full = name if name.startswith("facilities/") else f"facilities/{facility}/keys/{short}"
        [key] = [key for key in self.dev["keys"] if key["name"] == full]
        return dict(key)

    def client_file(self, name: str = "issuer") -> Path:
        """The file for ``--client``."""
        return self.dir / f"client-{name}.yaml"

    def set_workers(self, workers: int) -> None:
        """Takes effect at a start."""
        path = self.dir / "signer.yaml"
        path.write_text(texts.with_workers(path.read_text(), workers))

    def configure(self, changes: Mapping[str, Any]) -> None:
        """Merges ``changes`` into signer.yaml; lists are replaced. Takes effect at a start."""
        path = self.dir / "signer.yaml"
        config = yaml.safe_load(path.read_text())
        _merge(config, changes)
        path.write_text(yaml.safe_dump(config, sort_keys=False))

    def edit_policy(self, edit: Callable[[dict[str, Any]], object]) -> None:
        """Has ``edit`` change policy.yaml, parsed, in place. Takes effect at a reload or start."""
        path = self.dir / "policy" / "policy.yaml"
        policy = yaml.safe_load(path.read_text())
        edit(policy)
        # JSON is YAML, with every text in quotes and without anchors.
        path.write_text(json.dumps(policy, indent=2))


class TwoTokens(Appliance):
    """One with two tokens that hold the same keys, and a worker for each."""

    made_with: ClassVar[tuple[str, ...]] = ("--tokens", "2", "--workers", "1")


class WrappedKeys(Appliance):
    """One whose keys are stored wrapped in the registry."""

    made_with = ("--storage", "wrapped")


class TwoTokensWrapped(TwoTokens):
    """One with two tokens that hold the same wrapping key."""

    made_with = (*TwoTokens.made_with, *WrappedKeys.made_with)


@contextmanager
def serving(made: Appliance) -> Iterator[None]:
    """Starts an appliance; it must live until the end of the block, and end cleanly."""
    made.start()
    try:
        yield
    finally:
        lived, code = made.running, made.stop()
    assert lived, f"the appliance died (exit code {code}):\n{made.log_end()}"
    assert code == 0, f"the appliance ended with {code}:\n{made.log_end()}"


def _merge(into: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value
