"""One of several tokens is absent, goes, or comes back: only what it alone holds is away."""

import secrets
import sqlite3
from contextlib import closing
from copy import deepcopy

import pytest
import yaml
from grpc_health.v1 import health_pb2

from signer.tools.dev.appliance import DevAppliance
from tests.daemon import Daemon, until
from tests.fault.daemon import OTHERS
from tests.integration import edge

FIRST, SECOND = "signer-dev", "signer-dev-2"


def token_health(daemon: Daemon, token: str) -> str:
    """Health of one token, by its service name."""
    with edge.connect(daemon.dev) as stubs:
        request = health_pb2.HealthCheckRequest(service=f"signer.v1.SigningService/{token}")
        status = stubs.health.Check(request, timeout=5).status
    return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


def move_key(daemon: Daemon, token: str) -> None:
    """Makes the registry say that a key is on another token, as another appliance has it."""
    with closing(sqlite3.connect(daemon.folder / "registry.sqlite")) as registry:
        done = registry.execute(
            "UPDATE key_versions SET token = ? WHERE key_id ="
            " (SELECT id FROM keys WHERE facility = '01-002' AND key = 'records')",
            (token,),
        )
        assert done.rowcount == 1
        registry.execute("UPDATE revision SET value = value + 1")
        registry.execute("UPDATE key_versions SET revision = (SELECT value FROM revision)")
        registry.commit()
    with DevAppliance(daemon.folder):  # in development a start takes it as given
        pass


def add_token(daemon: Daemon, label: str) -> None:
    """Adds a token to the configuration that is not there."""
    config = daemon.settings
    [first] = config["tokens"]
    other = {"label": label, "serial": secrets.token_hex(8)}
    config["tokens"].append(deepcopy(first) | other)
    daemon.config.write_text(yaml.safe_dump(config, sort_keys=False))


@pytest.mark.parametrize("configured", [True, False])
def test_keys_of_a_token_that_is_not_here_fail_and_others_are_served(
    daemon: Daemon, configured: bool
) -> None:
    move_key(daemon, SECOND)
    if configured:
        add_token(daemon, SECOND)
    daemon.start()
    assert daemon.health() == "SERVING"
    assert daemon.sign() == {"ok": 3}
    with daemon.client() as client:
        [item] = client.sign_batch(OTHERS, "MESSAGE", [b"m"], timeout=20)
    assert item.error is not None
    assert (item.error.code, item.error.reason) == ("UNAVAILABLE", "HSM_UNAVAILABLE")
    assert item.error.retry_after
    until(lambda: daemon.metric("signer_keys_away") == 1, "the key is counted as away")
    assert daemon.metric("signer_ready") == 1
    assert daemon.metric("signer_token_serving", token=FIRST) == 1
    assert token_health(daemon, FIRST) == "SERVING"
    status, text = daemon.get("/readyz")
    assert status == 200
    with daemon.client("operator") as client:
        differences = "\n".join(client.status().differences)
    if configured:
        assert daemon.metric("signer_token_serving", token=SECOND) == 0
        assert token_health(daemon, SECOND) == "NOT_SERVING"
        for told in (text, differences, daemon.get("/")[1]):
            assert f"token {SECOND} is away: no token with label" in told.replace("&#x27;", "'")
        assert "DEGRADED" in daemon.get("/")[1]
        until(lambda: '"event": "degraded"' in daemon.log.read_text(), "and the log says so")
    else:
        assert text == "ready\n"


def test_no_token_serves_where_all_are_away(daemon: Daemon) -> None:
    add_token(daemon, SECOND)
    (daemon.folder / "token").rename(daemon.folder / "hidden")
    daemon.start(ready=False)
    until(lambda: "token signer-dev-2: " in daemon.reason(), "both say why")
    assert f"token {FIRST}: " in daemon.reason()
    assert daemon.health() == token_health(daemon, FIRST) == "NOT_SERVING"
    (daemon.folder / "hidden").rename(daemon.folder / "token")
    until(lambda: not daemon.reason(), "it serves with the first token")
    assert daemon.sign() == {"ok": 3}
    assert daemon.metric("signer_token_serving", token=SECOND) == 0
