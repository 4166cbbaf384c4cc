"""A rejected PIN is never tried again by itself, whatever happens in between."""

import json
import stat
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from signer.errors import OperatorError
from signer.hsm.latch import MAX_FAILED_LOGINS, PinLatch, latch_of, release, start_lock

# None of them can stand in a salt or a hash, which are written in hex.
PINS = ("pin-one", "pin-two", "secret")


OUTCOMES = ("judged", "dies", "token fails", "token away")


class OneTry(RuleBasedStateMachine):
    """Workers that log in as signer.hsm.worker.login does, on a token that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.right = PINS[0]
        self.tried: list[str] = []  # PINs that count as rejected, since the last release
        self.worked: str | None = None
        self.failures = 0  # in a row, without a verdict, of the PIN that worked

    def log_in(self, pin: str, outcome: str) -> None:
        """One worker's start; a new object each time, as after a restart."""
        known = latch_of(self.path, "token", "serial")
        if known.rejected(pin):
            assert pin in self.tried, "a PIN is latched without a try"
            return
        assert pin not in self.tried, "a rejected PIN is tried again"
        known.attempt(pin)
        if outcome == "token away" and pin == self.worked:
            known.undo()
            assert not latch_of(self.path, "token", "serial").rejected(pin)
            return
        if outcome != "judged":
            self.failures += pin == self.worked
            latched = latch_of(self.path, "token", "serial").rejected(pin)
            assert latched == (pin != self.worked or self.failures >= MAX_FAILED_LOGINS)
            if latched:
                self.latched(pin)
        elif pin == self.right:
            self.failures = 0
            known.accept(pin)
            self.worked = pin
            assert latch_of(self.path, "token", "serial").accepted(pin)
        else:
            known.reject(pin)
            self.latched(pin)

    def latched(self, pin: str) -> None:
        self.tried.append(pin)
        if pin == self.worked:
            self.failures = 0

    @rule(pin=st.sampled_from(PINS), outcome=st.sampled_from(OUTCOMES))
    def start(self, pin: str, outcome: str) -> None:
        self.log_in(pin, outcome)

    @rule()
    def operator_releases(self) -> None:
        latched = release(self.path, "token")
        assert (latched is not None) == any(self.path.glob("pin-*.json"))
        assert bool(latched) <= bool(self.tried), "what holds was tried"
        assert not release(self.path, "token"), "and nothing holds any more"
        if latched is not None:
            self.failures = MAX_FAILED_LOGINS - 1  # one more attempt
        self.tried.clear()

    @rule(pin=st.sampled_from(PINS))
    def operator_sets_the_pin_of_the_token(self, pin: str) -> None:
        self.right = pin

    @invariant()
    def the_right_pin_that_worked_is_trusted(self) -> None:
        if self.worked is not None and self.worked not in self.tried:
            known = latch_of(self.path, "token", "serial")
            assert known.accepted(self.worked)
            assert not known.rejected(self.worked)

    @invariant()
    def nobody_else_can_read_it_and_no_pin_stands_in_it(self) -> None:
        for path in self.path.glob("pin-*"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            content = path.read_text()
            assert not any(pin in content for pin in PINS)

    def teardown(self) -> None:
        self.folder.cleanup()


TestOneTry = OneTry.TestCase
TestOneTry.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


@pytest.fixture
def known(tmp_path: Path) -> PinLatch:
    return latch_of(tmp_path, "token", "serial")


def test_a_new_latch_knows_nothing(known: PinLatch, tmp_path: Path) -> None:
    assert not known.rejected("1234")
    assert not known.accepted("1234")
    assert not known.confirmed
    assert list(tmp_path.iterdir()) == []


def test_the_pin_does_not_follow_from_the_file(tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        known = latch_of(tmp_path, name, "serial")
        known.reject("1234")
        [path] = tmp_path.glob(f"pin-{name.encode().hex()}-*")
        files.append(json.loads(path.read_text()))
    # The same PIN looks different in each: a table of hashes of all short PINs is useless.
    assert files[0]["salt"] != files[1]["salt"]
    assert files[0]["rejected"] != files[1]["rejected"]


def test_a_release_confirms_one_attempt_and_no_more(known: PinLatch, tmp_path: Path) -> None:
    known.reject("1234")
    assert release(tmp_path, "token")
    released = latch_of(tmp_path, "token", "serial")
    assert released.confirmed
    assert not released.rejected("1234")
    released.attempt("1234")
    assert not latch_of(tmp_path, "token", "serial").confirmed
    assert latch_of(tmp_path, "token", "serial").rejected("1234")


def test_every_rejected_pin_stays_rejected(known: PinLatch, tmp_path: Path) -> None:
    known.reject("wrong")
    known.reject("wrong too")
    known.attempt("right")
    known.accept("right")
    after = latch_of(tmp_path, "token", "serial")
    assert after.rejected("wrong")
    assert after.rejected("wrong too")
    assert not after.rejected("right")
    assert after.accepted("right")


def test_a_login_that_fails_without_a_verdict_rejects_a_pin_that_never_worked(
    known: PinLatch,
) -> None:
    known.attempt("new")
    assert known.rejected("new")


def test_a_pin_that_has_worked_may_fail_a_few_times_in_a_row(
    known: PinLatch, tmp_path: Path
) -> None:
    known.attempt("good")
    known.accept("good")
    for _ in range(3):
        for _ in range(MAX_FAILED_LOGINS - 1):
            again = latch_of(tmp_path, "token", "serial")  # as after a restart
            again.attempt("good")
            assert not again.rejected("good")
        again.attempt("good")
        again.undo()  # the token was away
        assert not again.rejected("good")
        again.accept("good")
    for _ in range(MAX_FAILED_LOGINS):  # a worker that dies in its login says nothing more
        assert not latch_of(tmp_path, "token", "serial").rejected("good")
        latch_of(tmp_path, "token", "serial").attempt("good")
    assert latch_of(tmp_path, "token", "serial").rejected("good")
    release(tmp_path, "token")
    once = latch_of(tmp_path, "token", "serial")
    once.attempt("good")
    assert once.rejected("good"), "a release allows one more attempt"


def test_an_older_version_reads_the_record_while_no_login_fails(
    known: PinLatch, tmp_path: Path
) -> None:
    def stored() -> dict[str, object]:
        [path] = tmp_path.glob("pin-*.json")
        return dict(json.loads(path.read_text()))

    known.attempt("good")
    known.accept("good")
    assert stored().keys() == {"salt", "rejected", "accepted", "confirmed"}
    known.attempt("good")
    assert stored()["failures"] == 1
    known.accept("good")
    assert stored().keys() == {"salt", "rejected", "accepted", "confirmed"}


def test_tokens_are_distinguished_by_label_and_serial(tmp_path: Path) -> None:
    latch_of(tmp_path, "token", "1").reject("1234")
    assert not latch_of(tmp_path, "token", "2").rejected("1234")
    assert not latch_of(tmp_path, "other", "1").rejected("1234")
    assert latch_of(tmp_path, "token", "1").rejected("1234")


def test_a_release_reaches_only_its_token(tmp_path: Path) -> None:
    for label in ("token", "token-2"):
        latch_of(tmp_path, label, "1").reject("1234")
    assert release(tmp_path, "token")
    assert not latch_of(tmp_path, "token", "1").rejected("1234")
    assert latch_of(tmp_path, "token-2", "1").rejected("1234")


def test_nothing_is_released_where_nothing_was_tried(tmp_path: Path) -> None:
    assert not release(tmp_path, "token")
    assert not release(tmp_path / "absent", "token")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"salt": "zz"}', '{"rejected": []}', "\xff"])
def test_a_damaged_record_allows_no_attempt(tmp_path: Path, content: str) -> None:
    latch_of(tmp_path, "token", "1").reject("1234")
    [path] = tmp_path.glob("pin-*")
    path.write_text(content, encoding="latin-1")
    with pytest.raises(OperatorError, match="no login is tried"):
        latch_of(tmp_path, "token", "1")
    with pytest.raises(OperatorError, match="delete the file"):
        release(tmp_path, "token")


def test_a_crash_while_writing_leaves_the_old_record(
    known: PinLatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known.reject("1234")

    def crash(_descriptor: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr("os.fsync", crash)
    with pytest.raises(OSError, match="no space"):
        known.accept("1234")
    assert latch_of(tmp_path, "token", "serial").rejected("1234")


def test_a_record_of_a_later_version_is_not_read(tmp_path: Path) -> None:
    latch_of(tmp_path, "token", "1").reject("secret")
    [path] = tmp_path.glob("pin-*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attempts": 1}))
    with pytest.raises(OperatorError, match="was written by a newer version of signer"):
        latch_of(tmp_path, "token", "1")


def test_a_start_that_waits_for_another_shows_that_it_does_not_hang(tmp_path: Path) -> None:
    waits: list[int] = []
    held, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with start_lock(tmp_path, "t"):
            held.set()
            assert enough.wait(20)

    def wait() -> None:
        waits.append(1)
        if len(waits) == 3:
            enough.set()

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(20)
    with start_lock(tmp_path, "t", wait):
        assert len(waits) >= 3
    holder.join()
