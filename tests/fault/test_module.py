"""A PKCS#11 module that goes wrong: shim.c between the workers and the real SoftHSM."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from signer.audit.format.segments import list_segments
from signer.audit.read.reader import Reader
from signer.client import SignerClient
from signer.client._errors import (
    DeadlineError,
    ExhaustedError,
    PreconditionError,
    SignerClientError,
)
from tests.daemon import RECORDS, Daemon, kill_workers, until
from tests.fault.daemon import OTHERS, Load, check_all
from tests.fault.shim import Action, Shim
from tests.torture import long

pytestmark = pytest.mark.usefixtures("two_workers")

WRONG: dict[str, Any] = {"action": Action.FLIP}
HANG: dict[str, Any] = {"action": Action.HANG}
CRASH: dict[str, Any] = {"action": Action.SEGFAULT}


@pytest.fixture
def faults(daemon: Daemon, shim_module: Path, shim: Shim) -> Shim:
    """Rules for the module of the daemon's workers."""
    daemon.configure(token={"module": str(shim_module), "environment": shim.environment})
    return shim


def settle(daemon: Daemon) -> None:
    """Waits until a checkpoint covers the log: it must not take an order for one signature."""
    size = Reader(list_segments(daemon.folder / "audit")).size

    def covered() -> bool:
        with daemon.client("auditor") as client:
            try:
                return int(client.get_checkpoint().splitlines()[1]) >= size
            except SignerClientError:
                return False  # there is none yet

    until(covered, "a checkpoint covers the log")


# --- wrong signatures ---------------------------------------------------------------------


def test_nothing_wrong_leaves_and_the_key_stops(daemon: Daemon, faults: Shim) -> None:
    check_all(daemon)
    daemon.start()
    assert daemon.sign(300) == {"ok": 300}
    settle(daemon)
    faults.on("C_Sign", times=1, **WRONG)
    ends = daemon.sign(1)
    assert ends == {"HSM_UNAVAILABLE": 1}
    for _ in range(2):
        with daemon.client() as client, pytest.raises(PreconditionError) as stopped:
            client.sign_batch(RECORDS, "MESSAGE", [b"m"])
        assert stopped.value.reason == "KEY_VERSION_NOT_ACTIVE"
    assert daemon.metric("signer_signature_checks_total", result="wrong") == 1
    line = f'"key_version": "{RECORDS}/versions/1", "wrong": 1'
    until(lambda: line in daemon.log.read_text(), "the line is written")
    assert daemon.sign(300, key=OTHERS) == {"ok": 300}
    assert daemon.health() == "SERVING"
    assert daemon.metric("signer_worker_restarts_total") == 0


def test_one_wrong_signature_has_its_whole_chunk_checked(daemon: Daemon, faults: Shim) -> None:
    daemon.configure(token={"workers": 1})
    daemon.start()  # checks one signature in 64, and a key's first
    settle(daemon)
    correct = daemon.metric("signer_signature_checks_total", result="correct")
    faults.on("C_Sign", **WRONG)
    ends = daemon.sign(50)
    assert ends["wrong"] == 0
    assert set(ends) <= {"HSM_UNAVAILABLE", "KEY_VERSION_NOT_ACTIVE", "wrong"}
    assert ends["HSM_UNAVAILABLE"] > 1
    wrong = daemon.metric("signer_signature_checks_total", result="wrong")
    # The log's next checkpoint may be among them by now.
    assert wrong - ends["HSM_UNAVAILABLE"] in {0, 1}
    assert daemon.metric("signer_signature_checks_total", result="correct") == correct


def test_the_right_ones_of_a_wrong_chunk_may_leave(daemon: Daemon, faults: Shim) -> None:
    check_all(daemon)
    daemon.configure(token={"workers": 1})
    daemon.start()
    settle(daemon)
    faults.on("C_Sign", times=1, **WRONG)
    ends = daemon.sign(20)
    assert ends["HSM_UNAVAILABLE"] == 1
    assert ends["wrong"] == 0
    assert ends.total() == 20


def test_three_keys_with_wrong_signatures_stop_the_token(daemon: Daemon, faults: Shim) -> None:
    check_all(daemon)
    daemon.start()
    # It serves with its first worker; one that is killed before its login is not counted below.
    until(lambda: daemon.metric("signer_login_attempts_total", result="ok") >= 2, "both log in")
    faults.on("C_Sign", **WRONG)
    names = [
        "facilities/01-001/keys/records",
        "facilities/01-002/keys/records",
        "facilities/01-001/keys/records-ed25519",
    ]
    with daemon.client() as client:
        for number, name in enumerate(names):
            assert daemon.health() == "SERVING", f"{number} wrong keys stopped the token"
            [item] = client.sign_batch(name, "MESSAGE", [b"m"])
            assert item.signature == b""
            assert item.error is not None
            assert item.error.reason == "HSM_UNAVAILABLE"
        faults.clear()
        until(lambda: daemon.health() == "NOT_SERVING", "the token is stopped")
        [item] = client.sign_batch("facilities/01-001/keys/records-rsa", "MESSAGE", [b"m"])
    assert item.error is not None
    assert item.error.message == "the HSM does not serve now: try again later"
    assert "3 keys had wrong signatures" in daemon.reason()
    kill_workers(daemon.folder, *daemon.workers())
    until(lambda: daemon.metric("signer_login_attempts_total", result="ok") >= 4, "new workers")
    assert daemon.health() == "NOT_SERVING"


# --- calls that fail, hang or kill --------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "cause", "workers"),
    [
        ({"code": 0x30}, "module_fatal", 2),  # CKR_DEVICE_ERROR
        ({"code": 0x32}, "session_lost", 1),  # CKR_DEVICE_REMOVED
        (CRASH, "died", 2),
        (HANG, "hang", 1),
        *long(
            ({"code": 0x80000001}, "module_fatal", 1),  # a vendor's own
            (CRASH, "died", 1),
        ),
    ],
)
def test_callers_do_not_notice_one_failure(
    daemon: Daemon, faults: Shim, order: dict[str, Any], cause: str, workers: int
) -> None:
    # A worker that only waits for a processor is not to be taken for one that hangs.
    daemon.configure(token={"workers": workers, "hang_seconds": 1.0 if order is HANG else 10.0})
    daemon.start()
    assert daemon.sign() == {"ok": 3}
    settle(daemon)
    rule = faults.on("C_Sign", times=1, **order)
    assert daemon.sign(400) == {"ok": 400}
    assert rule.spent
    assert daemon.metric("signer_worker_restarts_total", cause=cause) == 1
    assert daemon.metric("signer_worker_restarts_total") == 1
    until(lambda: daemon.health() == "SERVING", "the only worker is replaced")


def test_items_fail_when_a_second_worker_dies_over_them(daemon: Daemon, faults: Shim) -> None:
    daemon.start()
    settle(daemon)
    faults.on("C_Sign", **CRASH)
    with daemon.client() as client:
        [item] = client.sign_batch(RECORDS, "MESSAGE", [b"m"])
    assert item.error is not None
    assert (item.error.code, item.error.reason) == ("UNAVAILABLE", "HSM_UNAVAILABLE")
    assert "two workers died" in item.error.message
    assert item.error.retry_after
    assert daemon.metric("signer_worker_restarts_total", cause="died") == 2
    faults.clear()
    until(lambda: not daemon.reason(), "it serves again")
    assert daemon.sign(300) == {"ok": 300}


def test_a_refused_key_fails_its_items_without_a_new_worker(daemon: Daemon, faults: Shim) -> None:
    daemon.start()
    faults.on("C_SignInit", code=0x63)  # CKR_KEY_TYPE_INCONSISTENT
    assert daemon.sign() == {"HSM_UNAVAILABLE": 3}
    faults.clear()
    assert daemon.sign() == {"ok": 3}
    assert daemon.metric("signer_worker_restarts_total") == 0


def test_a_slow_chunk_is_not_taken_for_a_hang(daemon: Daemon, faults: Shim) -> None:
    """What counts is one call: the chunk takes several times as long as one may."""
    daemon.configure(token={"workers": 1, "hang_seconds": 1.0})
    daemon.start()
    assert daemon.sign(300) == {"ok": 300}  # so that a chunk has many items
    faults.on("C_Sign", delay=0.1)
    assert daemon.sign(60) == {"ok": 60}
    assert daemon.metric("signer_worker_restarts_total") == 0


def test_a_hang_in_the_middle_of_a_load(daemon: Daemon, faults: Shim) -> None:
    daemon.configure(token={"hang_seconds": 1.0})
    daemon.start()
    with Load(daemon) as load:
        for _ in range(2):
            hang = faults.on("C_Sign", times=1, **HANG)
            until(lambda: hang.spent, "a worker hangs")
            load.more()
    until(lambda: daemon.metric("signer_worker_restarts_total", cause="hang") == 2, "both killed")
    assert load.ends["ok"] == load.ends.total()
    assert set(load.calls) == {"ok"}


def test_a_module_that_always_crashes_does_not_storm(daemon: Daemon, faults: Shim) -> None:
    daemon.start()
    faults.on("C_Sign", **CRASH)
    began = time.monotonic()
    with daemon.client() as client:
        for _ in range(3):
            [item] = client.sign_batch(RECORDS, "MESSAGE", [b"m"])
            assert item.error is not None
            assert item.error.reason == "HSM_UNAVAILABLE"
    spent = time.monotonic() - began
    # Pauses double: 0.2, 0.4, 0.8 seconds, and so on, in each of the two slots.
    most = 2 * next(n for n in range(2, 20) if 0.2 * (2 ** (n - 1) - 1) > spent)
    assert 0 < daemon.metric("signer_worker_restarts_total") <= most + 2


# --- a module that does not start ---------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "text"),
    [
        ({"action": Action.ABORT}, "was ended by SIGABRT"),
        (CRASH, "was ended by SIGSEGV"),
        ({"code": 0x5}, "C_Initialize of"),
    ],
)
def test_a_module_that_fails_at_its_start_is_reported_and_tried_again_slowly(
    daemon: Daemon, faults: Shim, order: dict[str, Any], text: str
) -> None:
    faults.on("C_Initialize", **order)
    began = time.monotonic()
    daemon.start(ready=False)
    until(lambda: text in daemon.reason(), "the reason is reported")
    until(lambda: daemon.sign(1) == {"HSM_UNAVAILABLE": 1}, "items fail at once")
    until(lambda: daemon.metric("signer_worker_restarts_total") >= 4, "it is tried again")
    spent = time.monotonic() - began
    most = 2 * next(n for n in range(2, 20) if 0.2 * (2 ** (n - 1) - 1) > spent)
    assert daemon.metric("signer_worker_restarts_total") <= most + 2
    assert daemon.health() == "NOT_SERVING"
    faults.clear()
    until(lambda: not daemon.reason(), "it serves by itself")
    assert daemon.sign() == {"ok": 3}


# --- a slow module: queues and deadlines --------------------------------------------------


def test_a_full_queue_refuses_with_a_hint(daemon: Daemon, faults: Shim) -> None:
    daemon.configure(token={"workers": 1, "hang_seconds": 20.0}, limits={"queued_items": 300})
    daemon.start()
    faults.on("C_Sign", delay=0.005)
    with daemon.client() as client, ThreadPoolExecutor(1) as threads:
        first = threads.submit(client.sign_batch, RECORDS, "MESSAGE", [b"m"] * 290)
        until(lambda: daemon.metric("signer_queue_items") > 40, "the queue fills")
        with pytest.raises(ExhaustedError) as refused:
            client.sign_batch(RECORDS, "MESSAGE", [b"m"] * 290)
        assert refused.value.reason == "OVERLOADED"
        assert refused.value.retry_after
        faults.clear()
        assert all(result.ok for result in first.result())
    assert daemon.sign(300) == {"ok": 300}


def test_a_deadline_that_passes_in_the_queue_ends_the_call_only(
    daemon: Daemon, faults: Shim
) -> None:
    daemon.configure(token={"workers": 1, "hang_seconds": 20.0})
    daemon.start()
    assert daemon.sign(500) == {"ok": 500}
    faults.on("C_Sign", delay=0.02)

    def late(client: SignerClient, seconds: float) -> SignerClientError:
        with pytest.raises(DeadlineError) as refused:
            client.sign_batch(RECORDS, "MESSAGE", [b"m"] * 300, timeout=seconds)
        return refused.value

    with daemon.client() as client, ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(late, client, 0.5 + number / 10) for number in range(3)]
        assert all(call.result().code == "DEADLINE_EXCEEDED" for call in calls)
        until(lambda: daemon.metric("signer_queue_items") == 0, "abandoned items are dropped")
    faults.clear()
    assert daemon.sign(300) == {"ok": 300}
    assert daemon.metric("signer_worker_restarts_total") == 0


def test_a_token_that_was_slow_refuses_nothing_once_it_is_well(
    daemon: Daemon, faults: Shim
) -> None:
    daemon.start()
    faults.on("C_Sign", delay=0.05)
    assert daemon.sign(60) == {"ok": 60}  # by which 2000 items would take 50 s
    faults.clear()
    with daemon.client() as client:
        results = client.sign_batch(RECORDS, "MESSAGE", [b"m"] * 2000, timeout=25.0)
    assert all(result.ok for result in results)


def test_one_facility_is_served_while_another_floods(daemon: Daemon, faults: Shim) -> None:
    daemon.start()
    faults.on("C_Sign", delay=0.001)
    with daemon.client() as flooding, daemon.client() as client, ThreadPoolExecutor(4) as threads:
        floods = [
            threads.submit(flooding.sign_batch, OTHERS, "MESSAGE", [b"m"] * 1500) for _ in range(4)
        ]
        until(lambda: daemon.metric("signer_queue_items") > 4000, "the flood waits")
        before = daemon.metric("signer_queue_items")
        for number in range(15):
            [item] = client.sign_batch(RECORDS, "MESSAGE", [b"%d" % number])
            assert item.ok
        left = daemon.metric("signer_queue_items")
        assert not any(flood.done() for flood in floods)
        # Fifteen single items cost at most a few chunks each, not the flood's queue.
        assert before - left < 1500
        faults.clear()
        assert all(result.ok for flood in floods for result in flood.result())
