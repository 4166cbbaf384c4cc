"""Return codes of C_UnwrapKey and C_WrapKey: a key that does not unwrap stops no other one."""

import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from signer.algorithms import Algorithm
from signer.errors import OperatorError
from signer.hsm.front.admin import open_admin
from signer.model import KeyVersion
from tests.daemon import until
from tests.fault.shim import Shim
from tests.fault.test_return_codes import CODES, SPANS, STALE, Stage, cases
from tests.integration.hsm_token import SoftToken, version

REFUSED = (
    *(0x005, 0x006, 0x007, 0x013, 0x040, 0x041, 0x063, 0x068, 0x070, 0x071),
    *(0x0D0, 0x0D1, 0x0F1, 0x0F2, 0x110, 0x112, 0x150),
)
"""Codes by which C_UnwrapKey refuses one key, and the session goes on."""
GONE = (*STALE, 0x0F0)
"""Codes by which it says that the wrapping key's handle is not valid: it is found again, once."""
ENDS = [code for code in CODES if code not in REFUSED]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, shim_module: Path) -> Iterator[Stage]:
    shim = Shim(tmp_path_factory.mktemp("rules") / "shim")
    token = SoftToken(tmp_path_factory.mktemp("hsm"), key_lookup="index")
    environment = {**token.settings.environment, **shim.environment}
    token.settings = token.settings.model_copy(
        update={"module": shim_module, "environment": environment}
    )
    with open_admin(token.settings, token.state) as admin:
        admin.make_wrapping_key("w")
        cka_id = secrets.token_bytes(16)
        spki, wrapped = admin.generate_wrapped(Algorithm.ES256, 0, cka_id, "w")
    key: KeyVersion = replace(version(Algorithm.ES256, cka_id, spki), wrapped=wrapped)
    with token.pool() as (pool, record):
        yield Stage(pool, record, shim, token, key)


@pytest.fixture
def stage(serving: Stage) -> Iterator[Stage]:
    """It serves, has unwrapped nothing, and has to serve again when the rules are gone."""
    until(serving.serves, "it serves")
    serving.pool.drop([serving.key])
    yield serving
    serving.shim.clear()
    until(serving.serves, "it serves again")


@pytest.mark.parametrize(
    ("function", "code", "span"), cases(("C_UnwrapKey",), (*REFUSED, *GONE), (0x005, 0x110, 0x0F0))
)
def test_a_key_that_does_not_unwrap_ends_no_session(
    stage: Stage, function: str, code: int, span: str
) -> None:
    since, tried = len(stage.record.left), stage.shim.calls["C_Login"]
    rule = stage.shim.on(function, code=code, times=SPANS[span])
    found_again = code in GONE and span == "once"
    assert bool(stage.sign().failures) != found_again
    assert rule.acted
    stage.shim.clear()
    assert not stage.sign().failures
    assert stage.causes(since) == []
    assert stage.shim.calls["C_Login"] == tried


@pytest.mark.parametrize(
    ("function", "code", "span"), cases(("C_UnwrapKey",), ENDS, (0x030, 0x0B3, 0x031))
)
def test_a_code_that_ends_the_session_costs_no_item(
    stage: Stage, function: str, code: int, span: str
) -> None:
    since = len(stage.record.left)
    stage.shim.on(function, code=code, times=SPANS[span])
    assert bool(stage.sign().failures) == (span != "once"), "two workers may die over an item"
    stage.shim.clear()
    until(stage.serves, "it serves again")
    assert set(stage.causes(since)) == {CODES[code]}


def test_an_unwrapped_key_that_is_stopped_is_destroyed_at_once(stage: Stage) -> None:
    assert not stage.sign().failures
    unwrapped, destroyed = (stage.shim.calls[f] for f in ("C_UnwrapKey", "C_DestroyObject"))
    assert not stage.sign().failures
    assert stage.shim.calls["C_UnwrapKey"] == unwrapped, "it is kept"
    stage.pool.drop([stage.key])
    until(lambda: stage.shim.calls["C_DestroyObject"] > destroyed, "it is destroyed")
    assert not stage.sign().failures
    assert stage.shim.calls["C_UnwrapKey"] == unwrapped + 1


@pytest.mark.parametrize(
    ("function", "code"),
    [
        *(("C_WrapKey", code) for code in (0x005, 0x031, 0x069, 0x113)),
        *(("C_UnwrapKey", code) for code in (0x005, 0x030)),
    ],
)
def test_a_key_that_cannot_be_wrapped_is_not_made(stage: Stage, function: str, code: int) -> None:
    token = stage.token

    def make() -> object:
        with open_admin(token.settings, token.state) as admin:
            return admin.generate_wrapped(Algorithm.ES256, 0, secrets.token_bytes(16), "w")

    stage.shim.on(function, code=code, times=1)
    with pytest.raises(OperatorError):
        make()
    stage.shim.clear()
    assert make()
    with open_admin(token.settings, token.state) as admin:
        assert admin.inventory() == [], "nothing is left on the token"
