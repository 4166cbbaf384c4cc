"""The shim itself: what it does to calls, and that it does nothing else."""

import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from signer.algorithms import Algorithm
from signer.hsm.front.admin import open_admin
from signer.hsm.front.pool import Pool
from signer.hsm.spec import FailureKind
from signer.model import KeyVersion
from tests.appliances import Appliance
from tests.commands import signer
from tests.daemon import RECORDS, until
from tests.fault.shim import FUNCTIONS, Action, Shim
from tests.fault.shim_probe import Probe
from tests.integration.hsm_token import SoftToken, all_correct, inputs_for, job, sign

KINDS = [
    (Algorithm.ES256, 0),
    (Algorithm.ES384, 0),
    (Algorithm.EDDSA, 0),
    (Algorithm.RS256, 2048),
    (Algorithm.PS256, 2048),
    (Algorithm.ES256, 0),
]


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    return Shim(tmp_path_factory.mktemp("rules") / "shim", index=True)


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory, shim_module: Path, rules: Shim) -> SoftToken:
    made = SoftToken(tmp_path_factory.mktemp("hsm"))
    environment = {**made.settings.environment, **rules.environment}
    made.settings = made.settings.model_copy(
        update={"module": shim_module, "environment": environment}
    )
    return made


@pytest.fixture(scope="module")
def keys(token: SoftToken) -> list[KeyVersion]:
    return token.make(*KINDS)


@pytest.fixture
def shim(rules: Shim) -> Iterator[Shim]:
    yield rules
    rules.clear()
    rules.latency = 0


def signs(pool: Pool, key: KeyVersion, count: int = 3) -> bool:
    inputs = inputs_for(key, count)
    signed = sign(pool, job(key, inputs))
    return not signed.failures and all_correct(key, inputs, signed.signatures)


def fails(pool: Pool, key: KeyVersion, count: int = 1) -> list[int]:
    """Signs so many items; returns which of them failed."""
    return sorted(sign(pool, job(key, inputs_for(key, count))).failures)


# --- calls ----------------------------------------------------------------------------------


def test_all_functions_of_the_standard_are_passed_on(shim_module: Path) -> None:
    header = Path("/usr/include/p11-kit-1/p11-kit/pkcs11.h").read_text()
    listed = header.partition("struct ck_function_list\n")[2].partition("};")[0].split()
    assert [name.rstrip(";") for name in listed[5::2]] == FUNCTIONS
    assert len(FUNCTIONS) == 68
    symbols = subprocess.run(
        ["nm", "--dynamic", "--defined-only", str(shim_module)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert [line.split()[-1] for line in symbols.stdout.splitlines()] == ["C_GetFunctionList"]


def test_without_rules_every_algorithm_signs_and_calls_are_counted(
    token: SoftToken, keys: list[KeyVersion], shim: Shim
) -> None:
    with shim.counting() as calls, token.pool(workers=2) as (pool, record):
        for key in keys:
            assert signs(pool, key, 20)
        for key in keys:
            assert signs(pool, key, 20)
    assert record.left == []
    assert calls["C_Login"] == calls["C_OpenSession"] == calls["C_Initialize"] == 2
    assert calls["C_SignInit"] == calls["C_Sign"] == 40 * len(keys)
    assert calls["C_CopyObject"] <= 2 * len(keys)


def test_keys_are_created_described_and_destroyed_through_it(token: SoftToken) -> None:
    with open_admin(token.settings, token.state) as admin:
        before = admin.inventory()
        for number, (algorithm, bits) in enumerate(KINDS):
            name = f"through-{number}"
            admin.generate(algorithm, bits, name.encode(), name)
            assert admin.attributes(name.encode())["never_extractable"]
        assert len(admin.inventory()) == len(before) + len(KINDS)
        for number in range(len(KINDS)):
            admin.destroy(f"through-{number}".encode(), f"through-{number}")
        assert admin.inventory() == before


def test_keys_of_a_module_that_gives_points_without_der_are_used(
    token: SoftToken, shim: Shim
) -> None:
    rule = shim.on("C_GetAttributeValue", action=Action.RAW_POINTS)
    made = token.make(*KINDS[:3])
    assert rule.acted
    shim.clear()
    with token.pool() as (pool, _):
        assert all(signs(pool, key) for key in made)


def test_a_latency_is_added_to_every_call(
    token: SoftToken, keys: list[KeyVersion], shim: Shim
) -> None:
    with token.pool() as (pool, _):
        assert signs(pool, keys[0])
        shim.latency = 0.02
        with shim.counting() as calls:
            began = time.monotonic()
            assert signs(pool, keys[0], 10)
            spent = time.monotonic() - began
        assert calls.total() == 20
        assert spent >= 0.02 * 20
        shim.latency = 0
        until(lambda: signs(pool, keys[0]), "it signs")


# --- rules ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "cause", "text"),
    [
        ({"code": 0x30}, FailureKind.MODULE_FATAL, "C_Sign returned 0x00000030"),
        ({"code": 0xB3}, FailureKind.SESSION_LOST, "C_Sign returned 0x000000b3"),
        ({"code": 0x30, "after": True}, FailureKind.MODULE_FATAL, "C_Sign returned 0x00000030"),
        ({"action": Action.ABORT}, FailureKind.DIED, signal.SIGABRT.name),
        ({"action": Action.SEGFAULT}, FailureKind.DIED, signal.SIGSEGV.name),
        ({"action": Action.HANG}, FailureKind.HANG, "hung and was killed"),
        ({"delay": 600.0}, FailureKind.HANG, "hung and was killed"),
    ],
)
def test_a_rule_for_one_call_is_seen_once(
    token: SoftToken,
    keys: list[KeyVersion],
    shim: Shim,
    rule: dict[str, Any],
    cause: FailureKind,
    text: str,
) -> None:
    with token.pool(hang=1.0) as (pool, record):
        assert signs(pool, keys[0])
        given = shim.on("C_Sign", skip=3, times=1, **rule)
        assert signs(pool, keys[0], 10), "the chunk is signed by the next worker"
        assert given.spent
        [(seen, said)] = record.left
        assert seen == cause
        assert text in said


@pytest.mark.parametrize(
    ("rule", "failed"),
    [
        ({"action": Action.FLIP}, [0, 1, 2, 3, 4]),
        ({"action": Action.FLIP, "times": 1}, [0]),
        ({"action": Action.FLIP, "skip": 2, "times": 2}, [2, 3]),
        ({"action": Action.FILL, "value": 0, "skip": 4}, [4]),
        ({"action": Action.RESIZE, "value": 63, "skip": 1, "times": 1}, [1]),
        ({"action": Action.OTHER_DATA, "skip": 3}, [3, 4]),
    ],
)
def test_a_spoilt_signature_is_that_of_the_calls_that_a_rule_takes(
    token: SoftToken, keys: list[KeyVersion], shim: Shim, rule: dict[str, Any], failed: list[int]
) -> None:
    with token.pool() as (pool, record):
        shim.on("C_Sign", **rule)
        assert fails(pool, keys[0], 5) == failed
        assert record.left == []


def test_a_rule_takes_the_calls_of_its_key_mechanism_session_and_process(
    token: SoftToken, keys: list[KeyVersion], shim: Shim
) -> None:
    es256, _, eddsa, *_ = keys
    with token.pool() as (pool, record):
        assert signs(pool, eddsa)  # with a copy, and before there is a rule
        refused = shim.on("C_SignInit", key=es256.cka_id, code=0x63)
        assert fails(pool, es256) == [0]
        assert signs(pool, eddsa)
        assert refused.acted == 1
        shim.clear()
        shim.on("C_Sign", mechanism=0x1057, action=Action.RESIZE, value=0)  # CKM_EDDSA
        assert signs(pool, es256)
        assert fails(pool, eddsa) == [0]
        shim.clear()
        for match in ({"session": 1 << 40}, {"pid": 1}, {"key": b"another"}):
            shim.on("C_SignInit", code=0x30, **match)
        assert signs(pool, es256)
        pid = pool._dispatcher.slots[0].pid
        mine = shim.on("C_SignInit", code=0x63, pid=pid)
        assert fails(pool, es256) == [0]
        assert mine.acted == 1
        assert record.left == []


def test_a_wrong_key_signs(token: SoftToken, keys: list[KeyVersion], shim: Shim) -> None:
    mine, other = keys[0], keys[-1]
    with token.pool() as (pool, record):
        rule = shim.on(
            "C_SignInit", key=mine.cka_id, action=Action.WRONG_KEY, other=other.cka_id, times=1
        )
        assert fails(pool, mine, 4) == [0]
        assert rule.spent
        assert record.left == []


def test_rules_of_one_function_are_a_queue(
    token: SoftToken, keys: list[KeyVersion], shim: Shim
) -> None:
    with token.pool() as (pool, record):
        for code in (0x63, 0x60, 0x70):
            shim.on("C_SignInit", times=1, code=code)
        for _ in range(6):
            sign(pool, job(keys[0], inputs_for(keys[0], 1)))
        assert signs(pool, keys[0])
        assert record.left == []


def test_a_call_that_hangs_goes_on_when_its_rule_is_removed(
    token: SoftToken, keys: list[KeyVersion], shim: Shim
) -> None:
    with token.pool(hang=60.0) as (pool, record):
        assert signs(pool, keys[0])
        rule = shim.on("C_Sign", times=1, action=Action.HANG)
        with ThreadPoolExecutor(1) as threads:
            signed = threads.submit(signs, pool, keys[0])
            until(lambda: rule.spent, "it hangs")
            assert not signed.done()
            rule.remove()
            assert signed.result()
        assert record.left == []


def test_a_control_file_of_another_version_is_refused(
    token: SoftToken, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shim").write_bytes(bytes(100))
    environment = {**token.settings.environment, "SHIM_CONTROL": str(tmp_path / "shim")}
    settings = token.settings.model_copy(update={"environment": environment})
    with pytest.raises(Exception, match="C_Initialize of"), open_admin(settings, token.state):
        pytest.fail("it opened")
    assert "of another version of the shim" in capfd.readouterr().err


# --- the index ------------------------------------------------------------------------------


def test_searches_see_what_this_and_other_processes_change(
    token: SoftToken, keys: list[KeyVersion]
) -> None:
    assert keys
    with Probe(token.spec()) as one, Probe(token.spec()) as two:
        there = len(one.private(None))
        assert len(one.found(None, "PRIVATE_KEY")) == len(two.found(None, "PRIVATE_KEY")) == there
        assert one.found("a") == two.found("a") == []
        one.create("a")
        assert len(one.found("a")) == len(two.found("a")) == 2
        assert len(two.found("a", "PRIVATE_KEY")) == len(two.found("a", "PUBLIC_KEY")) == 1
        one.create("a")
        assert len(two.found("a", "PRIVATE_KEY")) == 2, "an ambiguous id"
        two.rename("a", "b")
        assert one.found("a") == two.found("a") == []
        assert len(one.found("b")) == len(two.found("b")) == 4
        two.copy("b")
        assert len(two.found("b", "PRIVATE_KEY")) == 3, "a copy is an object of its session"
        assert len(one.found("b", "PRIVATE_KEY")) == 2, "which others do not see"
        one.destroy("b")
        assert one.found("b") == []
        assert len(two.found("b")) == 1
        assert len(one.found(None, "PRIVATE_KEY")) == there


def test_the_index_answers_by_class_and_id_and_the_module_all_else(
    token: SoftToken, rules: Shim
) -> None:
    with Probe(token.spec()) as one:
        one.create("asked")
        before = rules.own_seconds
        handles = one.found("asked", "PRIVATE_KEY")
        assert rules.own_seconds > before
        before = rules.own_seconds
        assert one.private("asked") == handles
        assert rules.own_seconds == before
        one.destroy("asked")


@pytest.mark.parametrize("times", [20, pytest.param(400, marks=pytest.mark.torture)])
def test_searches_find_what_the_module_finds(token: SoftToken, times: int) -> None:
    """Random changes by three processes: after each, one of them searches in both ways."""
    chosen = random.Random(times)
    names = [f"id-{number}" for number in range(5)]
    with Probe(token.spec()) as one, Probe(token.spec()) as two, Probe(token.spec()) as three:
        probes = [one, two, three]
        for _ in range(times):
            actor, name, other = chosen.choice(probes), chosen.choice(names), chosen.choice(names)
            match chosen.choice(["create", "destroy", "rename", "copy", "nothing"]):
                case "create":
                    actor.create(name)
                case "destroy":
                    actor.destroy(name)
                case "rename":
                    actor.rename(name, other)
                case "copy" if actor.found(name, "PRIVATE_KEY"):
                    actor.copy(name)
            seer, sought = chosen.choice(probes), chosen.choice([*names, None])
            assert seer.found(sought, "PRIVATE_KEY") == seer.private(sought)
        for name in names:
            one.destroy(name)


# --- a development appliance behind it ------------------------------------------------------


def test_a_development_appliance_has_a_slow_hsm_and_is_otherwise_as_always(
    shim_module: Path, make_appliance: Callable[..., Appliance]
) -> None:
    made = make_appliance(start=False)
    written = (made.dir / "signer.yaml").read_text()
    slow = Appliance(made.dir, ("--latency", "2", "--shim", str(shim_module)))
    with slow, slow.client() as client:
        [result] = client.sign_batch(RECORDS, "MESSAGE", [b"m"])
        assert result.ok
        calls = Shim(made.dir / "state" / "shim").calls
        assert calls["C_Login"] >= 1
        assert calls["C_Sign"] >= 1
        assert slow.process is not None
        workers = psutil.Process(slow.process.pid).children()
        assert {child.environ().get("SHIM_LATENCY_US") for child in workers} == {"2000"}
    assert (made.dir / "signer.yaml").read_text() == written


def test_a_slow_hsm_needs_the_shim_and_is_for_development(tmp_path: Path) -> None:
    done = signer("dev", "up", str(tmp_path / "a"), "--latency", "1", "--shim", "absent.so")
    assert done.code == 1
    assert "absent.so is missing: `make shim` compiles tests/fault/shim.c" in done.err
    assert signer("dev", "up", str(tmp_path / "a"), "--shim", "absent.so").code == 2
    refused = signer("serve", "--config", str(tmp_path / "a" / "signer.yaml"), "--latency", "1")
    assert refused.code == 2
    assert "No such option" in refused.err
