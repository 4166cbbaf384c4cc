"""One of several tokens is absent, goes, or comes back: only what it alone holds is away."""

import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from grpc_health.v1 import health_pb2

from signer.hsm.latch import start_lock
from tests.appliances import Appliance, TwoTokens
from tests.daemon import Daemon, until
from tests.fault.daemon import OTHERS, Load, check_all
from tests.fault.shim import Action, Shim
from tests.integration import edge
from tests.torture import long

FIRST, SECOND = "signer-dev", "signer-dev-2"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon with two tokens that hold the same keys, not started."""
    appliance = TwoTokens(tmp_path / "dev")
    appliance.init()
    made = Daemon(appliance.dir / "signer.yaml")
    yield made
    if made.running:
        assert made.stop() == 0


class Token:
    """One of the two tokens of a daemon, which a test may take away."""

    def __init__(self, daemon: Daemon, label: str) -> None:
        self.daemon, self.label = daemon, label
        suffix = label.removeprefix(FIRST)
        self.folder = daemon.folder / f"token{suffix}"
        self._conf = f"softhsm2{suffix}.conf"

    def workers(self) -> list[psutil.Process]:
        found = []
        for worker in self.daemon.workers():
            with suppress(psutil.NoSuchProcess):
                if worker.environ().get("SOFTHSM2_CONF", "").endswith(f"/{self._conf}"):
                    found.append(worker)
        return found

    def kill_workers(self) -> None:
        """Kills its workers, none of them in its login: see ``tests.daemon.kill_workers``."""
        with start_lock(self.daemon.folder / "state", self.label):
            for worker in self.workers():
                with suppress(psutil.NoSuchProcess):
                    worker.kill()

    def hide(self) -> None:
        self.folder.rename(self.folder.with_suffix(".hidden"))

    def show(self) -> None:
        self.folder.with_suffix(".hidden").rename(self.folder)

    def busy(self) -> float:
        """The seconds that its workers have spent on chunks."""
        return self.daemon.metric("signer_worker_busy_seconds_total", token=self.label)

    def works(self) -> bool:
        """Whether it serves and its breaker is closed."""
        serves = self.daemon.metric("signer_token_serving", token=self.label)
        return bool(serves) and not self.daemon.metric("signer_breaker_open", token=self.label)

    def signs(self, load: Load) -> None:
        """Waits until it takes part in a load."""
        before = self.busy()
        until(lambda: self.busy() > before, f"{self.label} signs")
        load.more()


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
    with Appliance(daemon.folder):  # in development a start takes it as given
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


# --- two tokens that hold the same keys ----------------------------------------------------


def test_an_absent_token_of_two_is_missed_by_no_caller(pair: Daemon) -> None:
    second = Token(pair, SECOND)
    second.hide()
    pair.start()
    with Load(pair, callers=2) as load:
        assert pair.metric("signer_keys_away") == 0
        assert token_health(pair, SECOND) == "NOT_SERVING"
        second.show()
        until(second.works, "it is there")
        second.signs(load)
    assert (+load.ends).keys() == {"ok"}
    assert load.calls.keys() == {"ok"}
    assert token_health(pair, SECOND) == "SERVING"


@pytest.mark.parametrize("label", [SECOND, *long(FIRST)])
@pytest.mark.parametrize("times", [1, pytest.param(30, marks=pytest.mark.torture)])
def test_no_item_fails_while_one_of_two_tokens_goes_and_comes_back(
    pair: Daemon, label: str, times: int
) -> None:
    pair.start()
    lost = Token(pair, label)
    other = Token(pair, SECOND if label == FIRST else FIRST)
    with Load(pair, callers=2) as load:
        for _ in range(times):
            lost.signs(load)
            lost.hide()
            lost.kill_workers()
            until(lambda: not lost.works(), "it is missed")
            other.signs(load)
            assert pair.metric("signer_ready") == 1
            lost.show()
            until(lost.works, "a canary has been signed")
    assert (+load.ends).keys() == {"ok"}
    assert load.calls.keys() == {"ok"}
    lines = pair.log.read_text()
    assert '"breaker_opened"' in lines
    assert '"breaker_closed"' in lines


DEFECTS: dict[str, dict[str, Any]] = {
    "crash": {"action": Action.SEGFAULT},
    "fail": {"code": 0x30},  # CKR_DEVICE_ERROR
    "hang": {"action": Action.HANG},
    "wrong": {"action": Action.FLIP},
}


@pytest.mark.parametrize("defect", ["hang", "wrong", *long("crash", "fail")])
def test_a_token_in_another_module_that_goes_wrong_fails_no_item(
    pair: Daemon, shim_module: Path, shim: Shim, defect: str
) -> None:
    check_all(pair)
    config = pair.settings
    second = config["tokens"][1]
    second["module"] = str(shim_module)
    second["hang_seconds"] = 1.0
    second["environment"] |= shim.environment
    pair.config.write_text(yaml.safe_dump(config, sort_keys=False))
    pair.start()
    with Load(pair, callers=2, items=40) as load:
        for label in (FIRST, SECOND):
            Token(pair, label).signs(load)
        shim.on("C_Sign", **DEFECTS[defect])
        if defect == "wrong":
            wrong = "signer_signature_checks_total"
            until(lambda: pair.metric(wrong, result="wrong"), "it is seen")
        else:
            until(lambda: pair.metric("signer_breaker_open", token=SECOND), "its breaker opens")
        Token(pair, FIRST).signs(load)
        shim.clear()
        if defect != "wrong":  # then the key stays stopped there until a restart
            until(Token(pair, SECOND).works, "a canary has been signed")
            Token(pair, SECOND).signs(load)
    assert (+load.ends).keys() == {"ok"}
    assert load.calls.keys() == {"ok"}
