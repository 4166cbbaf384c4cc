"""Worker processes on the real SoftHSM: algorithms, pins, copies, the queue, and the end."""

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from signer.algorithms import Algorithm
from signer.errors import CallError, OperatorError, Reason
from signer.hsm.front.admin import open_admin
from signer.hsm.front.pool import Pool
from signer.hsm.mechanisms import MECHANISMS
from signer.model import KeyVersion
from tests.daemon import until
from tests.integration.hsm_token import SoftToken, all_correct, inputs_for, job, public_key, sign

KINDS = [
    (Algorithm.ES256, 0),
    (Algorithm.ES384, 0),
    (Algorithm.EDDSA, 0),
    (Algorithm.RS256, 2048),
    (Algorithm.PS256, 2048),
    (Algorithm.PS256, 3072),
    (Algorithm.RS256, 4096),
]
NAMES = [f"{algorithm}-{bits}" if bits else str(algorithm) for algorithm, bits in KINDS]


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> SoftToken:
    return SoftToken(tmp_path_factory.mktemp("hsm"))


@pytest.fixture(scope="module")
def keys(token: SoftToken) -> dict[str, KeyVersion]:
    return dict(zip(NAMES, token.make(*KINDS), strict=True))


@pytest.fixture(scope="module")
def plenty(token: SoftToken) -> list[KeyVersion]:
    """Keys that tests may spoil."""
    return token.make(*[(Algorithm.ES256, 0)] * 8)


@pytest.fixture(scope="module")
def serving(token: SoftToken, keys: dict[str, KeyVersion]) -> Iterator[Pool]:
    assert keys
    with token.pool(workers=2) as (pool, _):
        yield pool


def verify(key: KeyVersion, data: bytes, signature: bytes) -> None:
    """By cryptography alone, without our own check; raises InvalidSignature."""
    public: Any = public_key(key)
    sha256 = Prehashed(hashes.SHA256())
    match key.algorithm:
        case Algorithm.EDDSA:
            public.verify(signature, data)
        case Algorithm.RS256:
            public.verify(signature, data, padding.PKCS1v15(), sha256)
        case Algorithm.PS256:
            pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
            public.verify(signature, data, pss, sha256)
        case _:
            half = len(signature) // 2
            r, s = int.from_bytes(signature[:half]), int.from_bytes(signature[half:])
            digest = hashes.SHA256() if half == 32 else hashes.SHA384()
            public.verify(encode_dss_signature(r, s), data, ec.ECDSA(Prehashed(digest)))


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_and_length_signs(
    serving: Pool, keys: dict[str, KeyVersion], name: str
) -> None:
    key = keys[name]
    inputs = inputs_for(key, 40)
    signed = sign(serving, job(key, inputs))
    assert signed.failures == {}
    assert len(signed.signatures) == len(inputs)
    order = MECHANISMS[key.algorithm].order
    for data, signature in zip(inputs, signed.signatures, strict=True):
        verify(key, data, signature)
        if order is not None:
            assert 0 < int.from_bytes(signature[len(signature) // 2 :]) <= order // 2


def test_messages_of_any_length_are_signed(serving: Pool, keys: dict[str, KeyVersion]) -> None:
    key = keys["EdDSA"]
    inputs = [b"", b"x", bytes(1000), bytes(70_000), bytes(300_000), b"y" * 17, b""]
    signed = sign(serving, job(key, inputs))
    assert all_correct(key, inputs, signed.signatures)


@pytest.mark.parametrize("copies", [True, False])
def test_with_and_without_session_copies(
    token: SoftToken, keys: dict[str, KeyVersion], copies: bool
) -> None:
    with token.pool(session_copies=copies) as (pool, record):
        for name in NAMES[:5]:
            inputs = inputs_for(keys[name], 8)
            for _ in range(2):
                signed = sign(pool, job(keys[name], inputs))
                assert all_correct(keys[name], inputs, signed.signatures)
        until(lambda: record.counts["items"] == 80, "all are counted")
        assert record.counts["checked"] == 80
        assert record.left == []


def test_many_callers_and_keys_at_once(serving: Pool, keys: dict[str, KeyVersion]) -> None:
    def call(number: int) -> bool:
        key = keys[NAMES[number % 4]]
        inputs = inputs_for(key, 1 + number % 60)
        signed = sign(serving, job(key, inputs, owner=f"owner-{number % 5}", check_every=7))
        return all_correct(key, inputs, signed.signatures)

    with ThreadPoolExecutor(12) as threads:
        assert all(threads.map(call, range(120)))


def test_the_first_signature_of_a_key_is_checked_and_one_in_n_after_it(
    token: SoftToken, plenty: list[KeyVersion]
) -> None:
    key, other = plenty[:2]
    with token.pool() as (pool, record):

        def checked(key: KeyVersion, count: int, check_every: int) -> int:
            before = record.counts.copy()
            signed = sign(pool, job(key, inputs_for(key, count), check_every=check_every))
            assert signed.failures == {}
            until(lambda: record.counts["items"] == before["items"] + count, "it is counted")
            return record.counts["checked"] - before["checked"]

        counts = [1, 9, 1, 35, 4, 10]  # together items 0 to 59, of which 0, 10, ... 50
        assert [checked(key, count, 10) for count in counts] == [1, 0, 1, 3, 0, 1]
        assert checked(other, 1, 1000) == 1


def test_a_pin_of_another_kind_fails_its_items_only(
    token: SoftToken, keys: dict[str, KeyVersion]
) -> None:
    key = keys["ES256"]
    small = rsa.generate_private_key(65537, 1024).public_key()  # noqa: S505 - to be refused
    pins = [
        keys["PS256-2048"].spki,
        small.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        b"no key at all",
    ]
    with token.pool() as (pool, record):
        for pin in pins:
            signed = sign(pool, job(replace(key, spki=pin), inputs_for(key, 3)))
            assert signed.signatures == [b""] * 3
            assert "pinned" in signed.failures[0].message
        assert sign(pool, job(key, inputs_for(key, 3))).failures == {}
        assert record.left == []


def test_items_over_which_two_workers_leave_fail_and_the_others_go_on(
    token: SoftToken, keys: dict[str, KeyVersion]
) -> None:
    key = keys["ES256"]
    # SoftHSM takes an EC key for RSA in C_SignInit and fails in C_Sign: the session is lost.
    mixed = replace(keys["RS256-4096"], cka_id=key.cka_id)
    with token.pool() as (pool, record), ThreadPoolExecutor(2) as threads:
        poison = threads.submit(sign, pool, job(mixed, inputs_for(mixed, 3), owner="p"))
        inputs = inputs_for(key, 500)
        assert all_correct(key, inputs, sign(pool, job(key, inputs)).signatures)
        signed = poison.result()
        assert signed.signatures == [b""] * 3
        assert {f.message for f in signed.failures.values()} == {
            "two workers died over this item: try again"
        }
        assert {f.reason for f in signed.failures.values()} == {Reason.HSM_UNAVAILABLE}
        until(lambda: pool.serving, "another worker serves")
        assert sign(pool, job(key, inputs[:3])).failures == {}
        assert [cause for cause, _ in record.left] == ["module_fatal"] * 2
        assert "C_Sign returned 0x00000005" in record.left[0][1]


def test_a_wrong_pin_stops_its_key_and_the_third_such_key_stops_the_token(
    token: SoftToken, plenty: list[KeyVersion]
) -> None:
    *spoilt, good, other = plenty[:5]
    with token.pool(workers=2) as (pool, record):
        for number, key in enumerate(spoilt, 1):
            altered = replace(key, spki=other.spki)
            inputs = inputs_for(key, 700)
            signed = sign(pool, job(altered, inputs, check_every=64))
            assert signed.signatures == [b""] * 700, "a wrong signature leaves"
            reasons = {failure.reason for failure in signed.failures.values()}
            assert Reason.HSM_UNAVAILABLE in reasons
            assert reasons <= {Reason.HSM_UNAVAILABLE, Reason.KEY_VERSION_NOT_ACTIVE}
            with pytest.raises(CallError) as refused:
                sign(pool, job(altered, inputs[:1]))
            assert refused.value.reason is Reason.KEY_VERSION_NOT_ACTIVE
            rest = sign(pool, job(good, inputs[:5]))
            if number < 3:
                assert rest.failures == {}
                assert pool.reason == ""
        until(lambda: record.counts["wrong"] >= 3, "they are counted")
        assert {failure.reason for failure in rest.failures.values()} == {Reason.HSM_UNAVAILABLE}
        assert rest.signatures == [b""] * 5
        assert "3 keys had wrong signatures" in pool.reason
        assert pool.serving == 0
        # Nor does a new worker bring it back.
        pids = {worker.pid for worker in pool.status()}
        for slot in pool._dispatcher.slots:
            assert slot.process is not None
            slot.process.kill()
        until(lambda: not pids & {w.pid for w in pool.status()}, "both are replaced")
        until(lambda: len(record.logins) == 4, "both have logged in")
        assert pool.serving == 0
        assert len(sign(pool, job(good, inputs[:5])).failures) == 5


def test_keys_made_while_workers_start_are_found(token: SoftToken) -> None:
    with token.pool() as (pool, record):
        for _ in range(4):
            [slot] = pool._dispatcher.slots
            assert slot.process is not None
            slot.process.kill()
            [key] = token.make((Algorithm.ES256, 0))
            pool.keys_changed([key.cka_id])
            assert sign(pool, job(key, inputs_for(key, 3))).failures == {}
        assert [cause for cause, _ in record.left] == ["died"] * 4


def test_the_answer_says_to_how_many_workers_an_item_was_given(
    token: SoftToken, keys: dict[str, KeyVersion]
) -> None:
    key = keys["ES256"]
    inputs = inputs_for(key, 20)
    with token.pool() as (pool, _), ThreadPoolExecutor(1) as threads:
        assert sign(pool, job(key, inputs)).attempts == 1
        [slot] = pool._dispatcher.slots
        assert slot.process is not None
        os.kill(slot.pid, signal.SIGSTOP)
        lost = threads.submit(sign, pool, job(key, inputs))
        until(lambda: slot.in_flight, "the worker has the chunk")
        slot.process.kill()
        signed = lost.result(30)
        assert (signed.failures, signed.attempts) == ({}, 2)
        pool.close()
        assert sign(pool, job(key, inputs)).attempts == 0


def test_the_end_answers_everybody(token: SoftToken, keys: dict[str, KeyVersion]) -> None:
    slow = keys["RS256-4096"]
    with token.pool(workers=2) as (pool, _), ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(sign, pool, job(slow, inputs_for(slow, 500))) for _ in range(3)]
        until(pool.waiting, "the batches wait")
        pool.close()
        for call in calls:
            signed = call.result(5)  # not at the deadline: at once
            assert signed.failures
            assert {f.reason for f in signed.failures.values()} == {Reason.HSM_UNAVAILABLE}
        late = sign(pool, job(slow, inputs_for(slow, 2)))
        assert len(late.failures) == 2
        assert all(worker.pid == 0 for worker in pool.status())


def test_a_start_that_the_system_refuses_is_tried_again(
    token: SoftToken, keys: dict[str, KeyVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    started, refusals = subprocess.Popen, iter(range(3))

    def refuse_at_first(*arguments: Any, **options: Any) -> Any:
        if next(refusals, None) is not None:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return started(*arguments, **options)

    monkeypatch.setattr("subprocess.Popen", refuse_at_first)
    with token.pool() as (pool, record):
        assert sign(pool, job(keys["ES256"], inputs_for(keys["ES256"], 2))).failures == {}
        assert [text for _, text in record.left] == [
            "no worker can be started: Resource temporarily unavailable"
        ] * 3


def test_no_second_key_is_made_under_one_id_or_label(tmp_path: Path) -> None:
    token = SoftToken(tmp_path / "hsm")
    [key] = token.make((Algorithm.ES256, 0))
    label = f"test-{key.cka_id.hex()}"
    with open_admin(token.settings, token.state) as admin:
        with pytest.raises(OperatorError, match="was not created for other"):
            admin.generate(Algorithm.ES256, 0, key.cka_id, "other")
        with pytest.raises(OperatorError, match="another private key with the label"):
            admin.generate(Algorithm.ES256, 0, b"other", label)
        with pytest.raises(OperatorError, match="does not fit PS256"):
            admin.generate(Algorithm.PS256, 2048, key.cka_id, label)
        assert admin.generate(Algorithm.ES256, 0, key.cka_id, label) == key.spki
    with token.pool() as (pool, _):  # nothing was made that would stop this start
        assert sign(pool, job(key, inputs_for(key, 2))).failures == {}
