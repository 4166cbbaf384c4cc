"""Modules that are not SoftHSM in our own process: an HSM in the network, and openCryptoki."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from signer.errors import CallError, OperatorError
from signer.hsm.front.admin import open_admin
from signer.hsm.latch import release
from signer.hsm.spec import FailureKind
from signer.model import TokenObject
from signer.tools.dev import softhsm
from tests.appliances import TwoTokens
from tests.daemon import Daemon, until
from tests.fault.daemon import Load, check_all
from tests.fault.other_modules import OpenCryptoki, P11KitServer, RemoteToken
from tests.integration.hsm_token import Record, all_correct, inputs_for, job, sign
from tests.torture import long


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory, shim_module: Path) -> Iterator[RemoteToken]:
    token = RemoteToken(tmp_path_factory.mktemp("hsm"), shim_module)
    yield token
    token.close()


@pytest.fixture(scope="module")
def locking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenCryptoki]:
    token = OpenCryptoki(tmp_path_factory.mktemp("hsm"))
    yield token
    token.close()


@pytest.fixture(params=["remote", "locking"])
def token(request: pytest.FixtureRequest) -> Iterator[RemoteToken | OpenCryptoki]:
    made: RemoteToken | OpenCryptoki = request.getfixturevalue(request.param)
    with made.inside():
        yield made


# --- what every module must do -------------------------------------------------------------


def test_every_algorithm_that_the_module_has_signs(token: RemoteToken | OpenCryptoki) -> None:
    keys = token.make(*token.kinds)
    with token.pool(workers=2) as (pool, record):
        for key in keys:
            inputs = inputs_for(key, 40)
            signed = sign(pool, job(key, inputs))
            assert signed.failures == {}
            assert all_correct(key, inputs, signed.signatures)
    assert record.left == []


def test_keys_have_the_strict_template(token: RemoteToken | OpenCryptoki) -> None:
    keys = token.make(*token.kinds)
    with open_admin(token.settings, token.state) as admin:
        for key in keys:
            values = admin.attributes(key.cka_id)
            assert {name for name, value in values.items() if value} == STRICT


STRICT = {"local", "never_extractable", "private", "sensitive", "sign", "token"}


def test_a_destroyed_pair_is_gone_and_others_stay(token: RemoteToken | OpenCryptoki) -> None:
    gone, kept = token.make(token.kinds[0], token.kinds[-1])
    with open_admin(token.settings, token.state) as admin:
        admin.destroy(gone.cka_id, f"test-{gone.cka_id.hex()}")
        inventory = admin.inventory()
        assert TokenObject(kept.cka_id, f"test-{kept.cka_id.hex()}") in inventory
        assert gone.cka_id not in {each.cka_id for each in inventory}
        with pytest.raises(OperatorError, match="no private key"):
            admin.attributes(gone.cka_id)


def test_a_key_made_while_workers_serve_signs_on_all(token: RemoteToken | OpenCryptoki) -> None:
    with token.pool(workers=2) as (pool, record):
        [key] = token.make(token.kinds[0])
        inputs = inputs_for(key, 200)
        assert all_correct(key, inputs, sign(pool, job(key, inputs)).signatures)
    assert record.counts["chunks"] > 1
    assert record.left == []


# --- a wrong PIN ---------------------------------------------------------------------------


@pytest.mark.parametrize("times", [3, pytest.param(20, marks=pytest.mark.torture)])
def test_a_wrong_pin_does_not_lock_a_token(token: RemoteToken | OpenCryptoki, times: int) -> None:
    """openCryptoki locks itself after five."""
    pin = token.settings.pin_file.read_text()
    token.settings.pin_file.write_text("76543210")
    logins = []
    try:
        for _ in range(times):
            with token.pool(workers=2, serving=False) as (_, record):
                until(lambda: latched(record), "a worker reports the latch")
            logins += record.logins
    finally:
        token.settings.pin_file.write_text(pin)
    assert logins == [FailureKind.PIN_REJECTED]
    release(token.state, softhsm.LABEL)
    with token.pool() as (_, record):
        assert record.logins == ["ok"]


def latched(record: Record) -> bool:
    return any(cause == FailureKind.PIN_LATCHED for cause, _ in record.left)


def test_a_module_of_its_own_for_every_caller_is_refused(remote: RemoteToken) -> None:
    direct = remote.settings.model_copy(update={"module": remote.server.client})
    with (
        pytest.raises(OperatorError, match="gives every caller of C_GetFunctionList a module"),
        open_admin(direct, remote.state),
    ):
        pass


# --- an HSM in the network -----------------------------------------------------------------


def test_an_hsm_that_goes_and_comes_back_serves_again(remote: RemoteToken) -> None:
    [key] = remote.make(remote.kinds[0])
    inputs = inputs_for(key, 20)
    with remote.pool(workers=2, hang=1.0) as (pool, _):
        for take_away in (remote.server.kill, lambda: remote.server.signal(signal.SIGSTOP)):
            assert all_correct(key, inputs, sign(pool, job(key, inputs)).signatures)
            take_away()
            with suppress(CallError):  # nothing is signed, and no caller waits for long
                signed = sign(pool, job(key, inputs, seconds=5.0))
                assert len(signed.failures) == len(inputs)
            remote.server.kill()
            remote.server.start()
            until(lambda: pool.serving == 2, "workers are back")
        assert all_correct(key, inputs, sign(pool, job(key, inputs)).signatures)


def test_a_token_is_found_in_another_slot(remote: RemoteToken) -> None:
    [key] = remote.make(remote.kinds[0])
    inputs = inputs_for(key, 20)
    for number in range(3):
        arguments = ("--free", "--label", f"other-{number}", "--pin", "1234", "--so-pin", "1234")
        subprocess.run(
            ["softhsm2-util", "--init-token", *arguments],
            env={**remote.environment, "PATH": "/usr/bin"},
            check=True,
            capture_output=True,
        )
        remote.server.kill()
        remote.server.start()
        with remote.pool() as (pool, _):
            assert all_correct(key, inputs, sign(pool, job(key, inputs)).signatures)


@pytest.fixture
def pair(tmp_path: Path, shim_module: Path) -> Iterator[tuple[Daemon, list[P11KitServer]]]:
    """A daemon with two tokens that hold the same keys, each behind a socket of its own."""
    appliance = TwoTokens(tmp_path / "dev")
    appliance.init()
    daemon = Daemon(appliance.dir / "signer.yaml")
    check_all(daemon)
    config, servers = daemon.settings, []
    for number, token in enumerate(config["tokens"]):
        environment = {
            name: value.replace("./", f"{daemon.folder}/", 1)
            for name, value in token["environment"].items()
        }
        server = P11KitServer(tmp_path / f"socket-{number}", environment)
        server.start()
        servers.append(server)
        token["module"], token["hang_seconds"] = str(shim_module), 1.0
        token["environment"] = server.environment(tmp_path / f"shim-{number}")
    daemon.config.write_text(yaml.safe_dump(config, sort_keys=False))
    yield daemon, servers
    if daemon.running:
        assert daemon.stop() == 0
    for server in servers:
        server.kill()


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.torture)])
@pytest.mark.parametrize("stopped", [True, *long(False)])
def test_no_item_fails_while_one_of_two_hsms_is_off_the_network(
    pair: tuple[Daemon, list[P11KitServer]], times: int, *, stopped: bool
) -> None:
    daemon, servers = pair
    daemon.start()

    def serving(label: str) -> bool:
        opened = daemon.metric("signer_breaker_open", token=label)
        return bool(daemon.metric("signer_token_serving", token=label)) and not opened

    labels = [token["label"] for token in daemon.settings["tokens"]]
    until(lambda: all(map(serving, labels)), "both serve")
    with Load(daemon, callers=2, items=40) as load:
        for turn in range(times):
            lost, label = servers[turn % 2], labels[turn % 2]
            if stopped:
                lost.signal(signal.SIGSTOP)
            else:
                lost.kill()
            until(lambda: not serving(label), "it is missed")
            load.more()
            lost.kill()
            lost.start()
            until(lambda: serving(label), "it is back")
    assert (+load.ends).keys() == {"ok"}
    assert load.calls.keys() == {"ok"}
