"""What the real SoftHSM holds after we made keys in it, and how copies of them behave."""

import pytest

from signer.algorithms import Algorithm
from signer.hsm.spec import WorkerMode
from tests.integration.hsm_probe import ask, key_arguments
from tests.integration.hsm_token import SoftToken, inputs_for, job, sign

KINDS = [
    (Algorithm.ES256, 0),
    (Algorithm.ES384, 0),
    (Algorithm.EDDSA, 0),
    (Algorithm.RS256, 2048),
    (Algorithm.PS256, 3072),
]


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> SoftToken:
    return SoftToken(tmp_path_factory.mktemp("hsm"))


def test_private_keys_have_the_strict_template(token: SoftToken) -> None:
    keys = token.make(*KINDS)
    answer = ask("attributes", token.spec(), keys=key_arguments(keys))
    assert list(answer) == [key.cka_id.hex() for key in keys]
    for attributes in answer.values():
        assert attributes == {
            "TOKEN": True,
            "PRIVATE": True,
            "SENSITIVE": True,
            "ALWAYS_SENSITIVE": True,
            "EXTRACTABLE": False,
            "NEVER_EXTRACTABLE": True,
            "LOCAL": True,
            "SIGN": True,
            "SIGN_RECOVER": False,
            "DECRYPT": False,
            "UNWRAP": False,
            "DERIVE": False,
            "readable": False,
        }


@pytest.mark.parametrize(
    ("count", "copies", "limits", "most"),
    [
        (7, True, {"most": 3, "rounds": 3}, 3),  # more keys than copies are kept
        (1, False, {"most": 3, "rounds": 2}, 0),
    ],
)
def test_all_keys_sign_whatever_copies_are_kept_and_all_copies_go(
    token: SoftToken, count: int, copies: bool, limits: dict[str, int], most: int
) -> None:
    keys = token.make(*[(Algorithm.ES256, 0)] * count)
    answer = ask("copies", token.spec(session_copies=copies), keys=key_arguments(keys), **limits)
    assert answer == {"correct": count * limits["rounds"] * 3, "most": most, "left": 0}


def test_a_key_that_is_lost_does_not_end_the_copies_of_others(token: SoftToken) -> None:
    keys = token.make(*[(Algorithm.ES256, 0)] * 3)
    spec = token.spec(mode=WorkerMode.ADMINISTER)
    answer = ask("copies_after_loss", spec, keys=key_arguments(keys))
    assert answer == {"verdicts": ["NO_KEY", "SIGNED", "SIGNED"], "copies": 2}


def test_no_pin_is_in_what_is_kept(token: SoftToken) -> None:
    [key] = token.make((Algorithm.ES256, 0))
    with token.pool() as (pool, _):
        assert sign(pool, job(key, inputs_for(key, 1))).failures == {}
    pin = token.settings.pin_file.read_text()
    kept = [path for path in token.state.rglob("*") if path.is_file()]
    assert any(path.name.startswith("pin-") for path in kept)
    for path in kept:
        assert pin.encode() not in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0
