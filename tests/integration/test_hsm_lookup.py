"""How workers find keys on the real SoftHSM, by a search and in an index."""

from dataclasses import replace

import pytest

from signer.algorithms import Algorithm
from signer.errors import Reason
from signer.events import KeyRefused
from signer.hsm.front.admin import open_admin
from signer.hsm.spec import KeyLookup
from signer.model import KeyVersion
from tests.integration.hsm_probe import ask
from tests.integration.hsm_token import SoftToken, all_correct, inputs_for, job, sign, version

P256 = (Algorithm.ES256, 0)
SEARCH = 4  # C_FindObjectsInit, C_FindObjects twice, C_CopyObject
PASS = 3  # C_FindObjectsInit, C_FindObjects twice; and a call for each name


@pytest.fixture(params=list(KeyLookup))
def token(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> SoftToken:
    folder = tmp_path_factory.mktemp("hsm")
    return SoftToken(folder, key_lookup=request.param.value)


def label(key: KeyVersion) -> str:
    return f"test-{key.cka_id.hex()}"


def opening(token: SoftToken, key: KeyVersion) -> dict[str, int]:
    return ask("calls", token.spec(), cka_id=key.cka_id.hex())


def test_the_calls_of_a_start_and_of_a_look_up(token: SoftToken) -> None:
    """A start with a search takes as many calls with many keys as with few."""
    [key] = token.make(P256)
    few = opening(token, key)
    token.make(*[P256] * 30)
    many = opening(token, key)
    if token.spec().key_lookup is KeyLookup.INDEX:
        assert many.pop("open") == few.pop("open") + 30, "one call a key"
        expected = {"first": 1, "second": 0, "absent": 0}  # a copy is made at the first use
        expected |= {"after a stop": 1, "after a change": PASS + 1 + 1}
    else:
        assert many.pop("open") == few.pop("open")
        expected = {"first": SEARCH, "second": 0, "absent": 2}
        expected |= dict.fromkeys(("after a stop", "after a change"), SEARCH)
    assert many == few == expected


def test_a_worker_knows_the_token_only_with_an_index(token: SoftToken) -> None:
    token.make(P256)
    with token.pool() as (pool, _):
        assert bool(pool.inventory) == (token.spec().key_lookup is KeyLookup.INDEX)


def test_all_workers_sign_with_a_key_that_was_made_meanwhile(token: SoftToken) -> None:
    with token.pool(workers=3) as (pool, record):
        [key] = token.make(P256)
        pool.keys_changed([key.cka_id])
        inputs = inputs_for(key, 3000)
        assert all_correct(key, inputs, sign(pool, job(key, inputs)).signatures)
        assert all(worker.items for worker in pool.status())
        assert record.left == []


def test_no_key_and_two_keys_are_told_apart_and_logged_once(token: SoftToken) -> None:
    twice, good = token.make(P256, P256)
    absent = version(Algorithm.ES256, b"absent", good.spki)
    ask("duplicate", token.spec(), cka_id=twice.cka_id.hex(), label="other")
    inputs = inputs_for(good, 4)
    with token.pool() as (pool, record):
        for _ in range(2):
            for key, text in ((absent, "does not hold the key of"), (twice, "holds two keys")):
                failed = sign(pool, job(key, inputs)).failures
                assert len(failed) == 4
                assert {failure.reason for failure in failed.values()} == {Reason.HSM_UNAVAILABLE}
                assert text in failed[0].message
                assert key.name in failed[0].message
            assert all_correct(good, inputs, sign(pool, job(good, inputs)).signatures)
        refused = [(event.key_version, event.verdict) for event in record.of(KeyRefused)]
        assert refused == [(absent.name, "NO_KEY"), (twice.name, "AMBIGUOUS")]
        assert record.left == []


@pytest.mark.parametrize("copies", [True, False])
def test_a_key_that_another_program_destroys_is_missed_and_no_other(
    token: SoftToken, copies: bool
) -> None:
    """Nobody names it: its handle is dead, or its session copy, once that is dropped."""
    gone, kept = token.make(P256, P256)
    inputs = inputs_for(gone, 4)
    with token.pool(session_copies=copies) as (pool, record):
        for key in (gone, kept):
            assert all_correct(key, inputs, sign(pool, job(key, inputs)).signatures)
        ask("destroy", token.spec(), cka_id=gone.cka_id.hex())
        pool.drop([gone])
        failed = sign(pool, job(gone, inputs)).failures
        assert len(failed) == 4
        assert "does not hold the key" in failed[0].message
        assert all_correct(kept, inputs, sign(pool, job(kept, inputs)).signatures)
        assert record.left == []


def test_a_key_that_takes_the_place_of_another_is_found_without_a_word(token: SoftToken) -> None:
    [old] = token.make(P256)
    inputs = inputs_for(old, 4)
    with token.pool(session_copies=False) as (pool, record):
        assert all_correct(old, inputs, sign(pool, job(old, inputs)).signatures)
        ask("destroy", token.spec(), cka_id=old.cka_id.hex())
        with open_admin(token.settings, token.state) as admin:
            spki = admin.generate(Algorithm.ES256, 0, old.cka_id, label(old))
        new = replace(old, spki=spki)
        assert all_correct(new, inputs, sign(pool, job(new, inputs)).signatures)
        assert record.left == []


def test_two_keys_of_one_label_both_sign_and_no_third_is_made(token: SoftToken) -> None:
    """Only an id finds a key; but nobody could tell the keys of one label apart."""
    [key] = token.make(P256)
    ask("duplicate", token.spec(), cka_id=b"other".hex(), label=label(key))
    inputs = inputs_for(key, 4)
    with token.pool() as (pool, _):
        assert all_correct(key, inputs, sign(pool, job(key, inputs)).signatures)
    with (
        open_admin(token.settings, token.state) as admin,
        pytest.raises(Exception, match="another private key with the label"),
    ):
        admin.generate(Algorithm.ES256, 0, b"third", label(key))
