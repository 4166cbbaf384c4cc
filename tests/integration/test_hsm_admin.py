"""Administrative orders on the real SoftHSM, and what running workers make of them."""

from dataclasses import replace

import pytest

from signer.algorithms import Algorithm
from signer.errors import OperatorError, Reason
from signer.hsm.frames import FrameKind, pack_json, unpack_json
from signer.hsm.front.admin import open_admin, wait_for_orphans
from signer.hsm.front.process import WorkerProcess
from signer.hsm.spec import WorkerMode
from signer.model import KeyVersion, TokenObject
from tests.integration.hsm_probe import ask
from tests.integration.hsm_token import SoftToken, all_correct, inputs_for, job, sign, version


@pytest.fixture
def token(tmp_path_factory: pytest.TempPathFactory) -> SoftToken:
    return SoftToken(tmp_path_factory.mktemp("hsm"))


def label(key: KeyVersion) -> str:
    return f"test-{key.cka_id.hex()}"


def test_the_token_describes_itself(token: SoftToken) -> None:
    with open_admin(token.settings, token.state) as admin:
        reported = admin.describe()
    assert reported["label"] == token.settings.label
    assert reported["serial"] == token.settings.serial
    assert reported["manufacturer"] == "SoftHSM project"
    assert reported["model"] == "SoftHSM v2"
    assert reported["library"] == "Implementation of PKCS11"
    for name in ("hardware_version", "firmware_version", "library_version"):
        major, minor = map(int, reported.pop(name).split("."))
        assert (major, minor) >= (2, 0)
    assert all(text == text.strip() for text in reported.values())


def test_the_inventory_has_every_private_key_of_now(token: SoftToken) -> None:
    keys = token.make((Algorithm.ES256, 0), (Algorithm.EDDSA, 0), (Algorithm.RS256, 2048))
    with open_admin(token.settings, token.state) as admin:
        reported = admin.inventory()
        assert sorted(reported) == sorted(TokenObject(key.cka_id, label(key)) for key in keys)
        [late] = token.make((Algorithm.ES384, 0))  # by another worker
        assert set(admin.inventory()) == {*reported, TokenObject(late.cka_id, label(late))}
        with open_admin(token.settings, token.state) as other:
            other.destroy(late.cka_id, label(late))
        assert sorted(admin.inventory()) == sorted(reported)


def test_an_operation_does_not_wait_for_a_worker_that_lists_keys(token: SoftToken) -> None:
    [key] = token.make((Algorithm.ES256, 0))
    impatient = token.settings.model_copy(update={"order_seconds": 0.2})
    with open_admin(token.settings, token.state, WorkerMode.LIST) as listing:
        assert listing.inventory() == [TokenObject(key.cka_id, label(key))]
        wait_for_orphans(impatient, token.state)
        with (
            open_admin(token.settings, token.state),
            pytest.raises(OperatorError, match="does not leave"),
        ):
            wait_for_orphans(impatient, token.state)


def test_the_attributes_of_our_key_are_the_strict_ones(token: SoftToken) -> None:
    [key] = token.make((Algorithm.ES256, 0))
    with open_admin(token.settings, token.state) as admin:
        values = admin.attributes(key.cka_id)
        assert (values["sign"], values["decrypt"], values["extractable"]) == (True, False, False)
        assert values["local"]
        assert len(values) == 11
        with pytest.raises(OperatorError, match=f"no private key with the CKA_ID {b'x'.hex()}"):
            admin.attributes(b"x")


def test_the_attributes_of_a_foreign_key_are_its_own(token: SoftToken) -> None:
    ask("duplicate", token.spec(), cka_id=b"foreign".hex(), label="foreign")
    with open_admin(token.settings, token.state) as admin:
        reported = admin.attributes(b"foreign")
    assert reported["decrypt"] is True
    assert reported["unwrap"] is True


def test_both_halves_of_a_destroyed_pair_are_gone(token: SoftToken) -> None:
    gone, kept = token.make((Algorithm.ES256, 0), (Algorithm.RS256, 2048))
    with open_admin(token.settings, token.state) as admin:
        admin.destroy(gone.cka_id, label(gone))
        assert admin.inventory() == [TokenObject(kept.cka_id, label(kept))]
        with pytest.raises(OperatorError, match="holds no private key"):
            admin.attributes(gone.cka_id)
        admin.destroy(gone.cka_id, label(gone))  # what is gone is done
    assert ask("objects", token.spec(), cka_id=gone.cka_id.hex()) == {}
    assert ask("objects", token.spec(), cka_id=kept.cka_id.hex()) == {
        "PRIVATE_KEY": 1,
        "PUBLIC_KEY": 1,
    }


def test_a_key_of_another_label_is_not_destroyed(token: SoftToken) -> None:
    [key] = token.make((Algorithm.ES256, 0))
    with open_admin(token.settings, token.state) as admin:
        with pytest.raises(OperatorError, match=r"another key than wrong .* nothing was"):
            admin.destroy(key.cka_id, "wrong")
        assert admin.inventory() == [TokenObject(key.cka_id, label(key))]
        assert admin.generate(Algorithm.ES256, 0, key.cka_id, label(key)) == key.spki


def test_of_two_keys_with_one_id_none_is_destroyed(token: SoftToken) -> None:
    [key] = token.make((Algorithm.ES256, 0))
    with open_admin(token.settings, token.state) as admin:
        ask("duplicate", token.spec(), cka_id=key.cka_id.hex(), label=label(key))
        with pytest.raises(OperatorError, match="nothing was destroyed"):
            admin.destroy(key.cka_id, label(key))
        assert admin.inventory() == [TokenObject(key.cka_id, label(key))] * 2
        with pytest.raises(OperatorError, match="holds 2 private keys"):
            admin.attributes(key.cka_id)
    with (
        open_admin(token.settings, token.state) as admin,
        pytest.raises(OperatorError, match="two private keys"),
    ):
        admin.generate(Algorithm.ES256, 0, key.cka_id, label(key))
    assert ask("objects", token.spec(), cka_id=key.cka_id.hex()) == {
        "PRIVATE_KEY": 2,
        "PUBLIC_KEY": 2,
    }


@pytest.mark.parametrize("copies", [True, False])
def test_running_workers_forget_a_destroyed_key(token: SoftToken, copies: bool) -> None:
    gone, kept = token.make(*[(Algorithm.ES256, 0)] * 2)
    inputs = inputs_for(gone, 20)
    with token.pool(session_copies=copies) as (pool, record):
        assert sign(pool, job(gone, inputs)).failures == {}
        with open_admin(token.settings, token.state) as admin:
            admin.destroy(gone.cka_id, label(gone))
        pool.keys_changed([gone.cka_id])
        signed = sign(pool, job(gone, inputs))
        assert signed.signatures == [b""] * 20
        assert {failure.reason for failure in signed.failures.values()} == {Reason.HSM_UNAVAILABLE}
        assert "does not hold the key" in signed.failures[0].message
        assert all_correct(kept, inputs, sign(pool, job(kept, inputs)).signatures)
        assert record.left == []


def test_another_key_under_the_id_of_a_destroyed_one_takes_its_place(token: SoftToken) -> None:
    [old] = token.make((Algorithm.ES256, 0))
    inputs = inputs_for(old, 20)
    with token.pool() as (pool, record):
        assert sign(pool, job(old, inputs)).failures == {}
        with open_admin(token.settings, token.state) as admin:
            admin.destroy(old.cka_id, label(old))
            spki = admin.generate(Algorithm.ES256, 0, old.cka_id, label(old))
        pool.keys_changed([old.cka_id])
        new = replace(version(Algorithm.ES256, old.cka_id, spki), key=old.key)
        assert new.spki != old.spki
        assert all_correct(new, inputs, sign(pool, job(new, inputs)).signatures)
        assert record.left == []


@pytest.mark.parametrize(
    ("operation", "mode"),
    [
        ("describe", "sign"),
        ("handles", "sign"),
        ("destroy", "sign"),
        ("nothing", "administer"),
        ("destroy", "list"),
    ],
)
def test_only_orders_of_ours_to_an_administrative_worker_are_carried_out(
    token: SoftToken, operation: str, mode: str
) -> None:
    worker = WorkerProcess.start(token.spec(mode=WorkerMode(mode)))
    try:
        while (kind := worker.channel.receive()[0]) is FrameKind.LOGIN:
            pass
        assert kind is FrameKind.READY
        worker.channel.send(FrameKind.ADMIN, pack_json({"operation": operation, "arguments": {}}))
        kind, body = worker.channel.receive()
    finally:
        worker.end()
    assert kind is FrameKind.FATAL
    assert "FrameError" in unpack_json(body)["text"]
