"""Administrative orders on a module that fails, hangs or dies in the middle of them."""

from pathlib import Path

import pytest

from signer.algorithms import Algorithm
from signer.config.models import TokenConfig
from signer.daemon.audit_log import ensure_audit_key
from signer.errors import OperatorError
from signer.hsm.front.admin import open_admin
from signer.keys.registry import Registry
from signer.model import AUDIT_KEY, TokenObject
from tests.fault.shim import Action, Shim
from tests.integration.hsm_probe import ask
from tests.integration.hsm_token import SoftToken, version

KEY = (Algorithm.ES256, 0, b"the id", "the label")


@pytest.fixture
def token(tmp_path: Path, shim_module: Path, shim: Shim) -> SoftToken:
    made = SoftToken(tmp_path / "hsm")
    environment = {**made.settings.environment, **shim.environment}
    made.settings = made.settings.model_copy(
        update={"module": shim_module, "environment": environment}
    )
    return made


def impatient(token: SoftToken, **seconds: float) -> TokenConfig:
    """The token's settings, with less time for one call."""
    return token.settings.model_copy(update=seconds)


def objects(token: SoftToken) -> dict[str, int]:
    return ask("objects", token.spec(), cka_id=KEY[2].hex())


def test_a_worker_that_hangs_at_its_start_is_killed(token: SoftToken, shim: Shim) -> None:
    shim.on("C_Initialize", action=Action.HANG)
    with (
        pytest.raises(OperatorError, match=r"did not answer within 0\.5 s and was killed"),
        open_admin(impatient(token, start_seconds=0.5), token.state),
    ):
        pytest.fail("it opened")
    shim.clear()
    with open_admin(token.settings, token.state) as admin:
        assert admin.inventory() == []


def test_a_worker_that_hangs_in_an_order_is_killed(token: SoftToken, shim: Shim) -> None:
    shim.on("C_GenerateKeyPair", action=Action.HANG)
    with open_admin(impatient(token, order_seconds=2.0), token.state) as admin:
        assert admin.inventory() == []
        with pytest.raises(OperatorError, match="did not answer within 2 s and was killed"):
            admin.generate(*KEY)
        with pytest.raises(OperatorError, match="worker of token signer-dev died"):
            admin.inventory()
    assert objects(token) == {}


def test_a_full_token_names_the_remedy_and_goes_on(token: SoftToken, shim: Shim) -> None:
    shim.on("C_GenerateKeyPair", code=0x31)  # CKR_DEVICE_MEMORY
    with open_admin(token.settings, token.state) as admin:
        with pytest.raises(OperatorError, match="it is full; destroy unused keys"):
            admin.generate(*KEY)
        shim.clear()
        assert admin.generate(*KEY)


def test_a_refused_order_leaves_the_worker_in_place(token: SoftToken, shim: Shim) -> None:
    shim.on("C_GenerateKeyPair", code=0x70)  # CKR_MECHANISM_INVALID
    with open_admin(token.settings, token.state) as admin:
        with pytest.raises(
            OperatorError, match=r"cannot create ES256 key the label: C_GenerateK.* 0x00000070"
        ) as refused:
            admin.generate(*KEY)
        assert refused.value.unsupported
        assert admin.inventory() == []


def test_a_passing_fault_does_not_change_the_algorithm_of_the_audit_key(
    token: SoftToken, shim: Shim, tmp_path: Path
) -> None:
    with (
        Registry.open(f"sqlite:///{tmp_path}/registry.sqlite", create=True) as registry,
        open_admin(token.settings, token.state) as admin,
    ):
        shim.on("C_GenerateKeyPair", times=1, code=0x31)  # CKR_DEVICE_MEMORY
        with pytest.raises(OperatorError, match="it is full") as refused:
            ensure_audit_key(registry, admin, 1.0)
        assert not refused.value.unsupported
        assert (registry.versions(AUDIT_KEY), admin.inventory()) == ([], [])
        made = ensure_audit_key(registry, admin, 2.0)
        assert made.algorithm is Algorithm.EDDSA
        assert ensure_audit_key(registry, admin, 3.0) == made


def test_a_token_without_ed25519_gets_an_audit_key_of_es256(
    token: SoftToken, shim: Shim, tmp_path: Path
) -> None:
    shim.on("C_GenerateKeyPair", times=1, code=0x70)  # CKR_MECHANISM_INVALID
    with (
        Registry.open(f"sqlite:///{tmp_path}/registry.sqlite", create=True) as registry,
        open_admin(token.settings, token.state) as admin,
    ):
        assert ensure_audit_key(registry, admin, 1.0).algorithm is Algorithm.ES256


@pytest.mark.parametrize("value", [0x30, 0xB3])  # CKR_DEVICE_ERROR, CKR_SESSION_HANDLE_INVALID
def test_after_a_failed_session_the_worker_leaves(token: SoftToken, shim: Shim, value: int) -> None:
    shim.on("C_GenerateKeyPair", code=value)
    with open_admin(token.settings, token.state) as admin:
        with pytest.raises(OperatorError, match=f"key the label: C_GenerateK.* {value:#010x}"):
            admin.generate(*KEY)
        shim.clear()
        with pytest.raises(OperatorError, match="worker of token signer-dev died"):
            admin.generate(*KEY)
    assert objects(token) == {}
    with open_admin(token.settings, token.state) as admin:
        assert admin.generate(*KEY)


def test_what_a_dead_worker_made_is_found_again(token: SoftToken, shim: Shim) -> None:
    shim.on("C_GenerateKeyPair", after=True, action=Action.SEGFAULT)
    with (
        open_admin(token.settings, token.state) as admin,
        pytest.raises(OperatorError, match="worker of token signer-dev died"),
    ):
        admin.generate(*KEY)
    shim.clear()
    assert objects(token) == {"PRIVATE_KEY": 1, "PUBLIC_KEY": 1}
    with open_admin(token.settings, token.state) as admin:
        spki = admin.generate(*KEY)
        assert admin.generate(*KEY) == spki
        assert admin.inventory() == [TokenObject(KEY[2], KEY[3])]
        key = version(KEY[0], KEY[2], spki)
        assert len(admin.sign(key.algorithm, key.cka_id, spki, [bytes(32)])) == 1
    assert objects(token) == {"PRIVATE_KEY": 1, "PUBLIC_KEY": 1}


def test_the_public_half_that_a_dead_worker_left_goes_with_the_next_order(
    token: SoftToken, shim: Shim
) -> None:
    with open_admin(token.settings, token.state) as admin:
        admin.generate(*KEY)
        shim.on("C_DestroyObject", after=True, action=Action.SEGFAULT)
        with pytest.raises(OperatorError, match="worker of token signer-dev died"):
            admin.destroy(KEY[2], KEY[3])
    shim.clear()
    assert objects(token) == {"PUBLIC_KEY": 1}, "the private half goes first"
    with open_admin(token.settings, token.state) as admin:
        assert admin.inventory() == []
        with pytest.raises(OperatorError, match="nothing was destroyed"):
            admin.destroy(KEY[2], "another label")
        assert objects(token) == {"PUBLIC_KEY": 1}
        admin.destroy(KEY[2], KEY[3])
        assert objects(token) == {}
        admin.destroy(KEY[2], KEY[3])


@pytest.mark.parametrize(("algorithm", "bits"), [(Algorithm.ES256, 0), (Algorithm.RS256, 2048)])
def test_few_calls_make_a_wrapped_key(
    token: SoftToken, shim: Shim, algorithm: Algorithm, bits: int
) -> None:
    """Each takes a millisecond or two where the HSM is in the network."""
    with open_admin(token.settings, token.state) as admin:
        admin.make_wrapping_key("w")
        admin.generate_wrapped(
            algorithm, bits, b"the first", "w"
        )  # which looks for its wrapping key
        with shim.counting() as calls:
            admin.generate_wrapped(algorithm, bits, b"the second", "w")
        assert admin.inventory() == []
    assert calls == {
        "C_GenerateKeyPair": 1,
        "C_GetAttributeValue": 2,  # of the public key; of the unwrapped one, as they are demanded
        "C_WrapKey": 1,
        "C_UnwrapKey": 1,
        "C_SignInit": 1,
        "C_Sign": 1,
        "C_DestroyObject": 3,
    }
