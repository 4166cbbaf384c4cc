"""A development appliance, and a database server, for tests that need the real thing.

``appliance`` is shared by the whole session: do not change its keys, policy or
configuration. ``make_appliance`` makes one of the test's own.

``postgres`` is the session's server, started for the first test that asks;
``postgres.database()`` is the URL of an empty database of the test's own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from hypothesis import HealthCheck, settings

from signer.bench.process import DevAppliance

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode adds no folder itself

from postgres import Postgres

# No test asserts a time, Hypothesis's neither: the machine may be busy.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


class Appliance(DevAppliance):
    """What tests use: besides ``dir``, ``dev``, ``client(name)``, ``process``, ``start``,
    ``stop`` and ``log`` of DevAppliance, its pages, keys and configuration.
    """

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a page of the metrics port."""
        address = urlsplit(self.dev["metrics"])
        connection = HTTPConnection(address.hostname or "", address.port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def key(self, name: str) -> dict[str, Any]:
        """What dev.json says of one key; ``name`` may be short: "01-001/records"."""
        facility, _, short = name.partition("/")
        full = name if name.startswith("facilities/") else f"facilities/{facility}/keys/{short}"
        [key] = [key for key in self.dev["keys"] if key["name"] == full]
        return dict(key)

    def client_file(self, name: str = "issuer") -> Path:
        """The file for ``--client``."""
        return self.dir / f"client-{name}.yaml"

    def configure(self, changes: Mapping[str, Any]) -> None:
        """Merges ``changes`` into signer.yaml; lists are replaced. Takes effect at a start."""
        path = self.dir / "signer.yaml"
        config = yaml.safe_load(path.read_text())
        _merge(config, changes)
        path.write_text(yaml.safe_dump(config, sort_keys=False))

    def edit_policy(self, edit: Callable[[dict[str, Any]], None]) -> None:
        """Has ``edit`` change policy.yaml, parsed, in place. Takes effect at a reload or start."""
        path = self.dir / "policy" / "policy.yaml"
        policy = yaml.safe_load(path.read_text())
        edit(policy)
        # JSON is YAML, with every text in quotes and without anchors.
        path.write_text(json.dumps(policy, indent=2))


def _merge(into: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value


@pytest.fixture(scope="session")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    """An appliance that serves; it must end cleanly after the last test."""
    made = Appliance(tmp_path_factory.mktemp("appliance") / "dev")
    made.start()
    try:
        yield made
    finally:
        lived, code = made.running, made.stop()
    assert lived, f"the appliance died (exit code {code}):\n{made.log_end()}"
    assert code == 0, f"the appliance ended with {code}:\n{made.log_end()}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server. Whoever stops it starts it again."""
    server = Postgres()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def make_appliance(tmp_path: Path) -> Iterator[Callable[..., Appliance]]:
    """Makes appliances that serve; whatever still lives at the end must end cleanly.

    ``make_appliance(workers=1, facilities=20, config={"limits": {"calls": 2}},
    policy=lambda policy: policy["facilities"].pop("moh"),
    environment={"NAME": "value"}, start=False)``: all are optional. ``config`` and
    ``policy`` are applied between provisioning and the start.
    """
    made: list[Appliance] = []

    def make(
        *,
        workers: int | None = None,
        facilities: int | None = None,
        config: Mapping[str, Any] | None = None,
        policy: Callable[[dict[str, Any]], object] | None = None,
        environment: Mapping[str, str] | None = None,
        start: bool = True,
    ) -> Appliance:
        options = {"--workers": workers, "--facilities": facilities}
        arguments = [
            word
            for name, value in options.items()
            if value is not None
            for word in (name, str(value))
        ]
        one = Appliance(tmp_path / f"dev-{len(made)}", arguments, environment)
        made.append(one)
        one.init()
        if config is not None:
            one.configure(config)
        if policy is not None:
            one.edit_policy(policy)
        if start:
            one.start()
        return one

    yield make
    codes = {one: one.stop() for one in made if one.running}
    for one, code in codes.items():
        assert code == 0, f"the appliance ended with {code}:\n{one.log_end()}"
