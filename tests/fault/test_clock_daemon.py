"""The running daemon on a machine whose clock jumps, or was wrong."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from signer.audit.format.record import DOUBTFUL, Record, RecordKind
from signer.audit.format.segments import list_segments
from signer.audit.read.reader import Reader
from signer.client import SignerClientError
from tests.daemon import RECORDS, Daemon, until
from tests.integration.officers import Office

PROGRAM = Path(__file__).with_name("serve_with_faults.py")
DAY = 24 * 3600
YEARS = 3 * 365 * DAY


class Machine:
    """A daemon on a machine whose clock a test sets."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.daemon, self._faults = daemon, folder
        folder.mkdir()
        daemon.program = [str(PROGRAM), str(folder), "0.05"]

    def jump(self, seconds: int) -> None:
        order = self._faults / "clock"
        order.with_suffix(".new").write_text(str(seconds))
        order.with_suffix(".new").rename(order)
        if self.daemon.running:
            until(lambda: not order.exists(), "the clock jumps")

    def records(self) -> list[Record]:
        reader = Reader(list_segments(self.daemon.folder / "audit"))
        return list(reader.records(0, reader.size))


@pytest.fixture
def machine(daemon: Daemon, tmp_path: Path) -> Iterator[Machine]:
    yield Machine(daemon, tmp_path / "faults")
    assert daemon.stop() == 0
    assert daemon.run("audit", "verify").code == 0


def outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except SignerClientError as error:
        return error.reason
    return "ok"


@pytest.mark.parametrize("jump", [YEARS, -YEARS, 60], ids=str)
def test_a_jump_stops_signing_until_it_is_undone_and_leaves_no_trace(
    machine: Machine, jump: int
) -> None:
    daemon = machine.daemon
    daemon.start()
    assert daemon.sign() == {"ok": 3}
    # From the very moment of the jump: no call waits until the daemon looks at itself.
    machine.jump(jump)
    assert outcome(daemon.sign) == "CLOCK_DOUBTFUL"
    until(lambda: daemon.health() == "NOT_SERVING", "health tells")
    direction = "forward" if jump > 0 else "back"
    assert f"the clock has jumped {direction} by {abs(jump)} s" in daemon.reason()
    assert daemon.metric("signer_clock_doubtful") == 1
    office = Office(daemon.dev)
    assert outcome(lambda: office.propose("new-version", key=RECORDS)) == "CLOCK_DOUBTFUL"
    machine.jump(-jump)
    until(lambda: daemon.health() == "SERVING", "it serves again")
    assert daemon.sign() == {"ok": 3}
    assert all(abs(each.time_us / 1e6 - time.time()) < DAY for each in machine.records())
    # A worker may have logged in meanwhile; nothing else was recorded.
    marked = {each.kind for each in machine.records() if DOUBTFUL in each.fields}
    assert marked <= {RecordKind.TOKEN}


def test_officers_stop_a_key_while_the_clock_is_in_doubt(machine: Machine) -> None:
    daemon = machine.daemon
    daemon.start()
    machine.jump(YEARS)
    office = Office(daemon.dev)
    with office.client("officer-a") as officer:
        officer.operations.suspend_everything("the clock is wrong")
    [act] = [each for each in machine.records() if each.kind is RecordKind.ACT]
    assert abs(act.time_us / 1e6 - time.time()) < DAY
    assert abs(act.fields[DOUBTFUL] / 1e6 - time.time() - YEARS) < DAY  # type: ignore[operator]
    machine.jump(-YEARS)
    until(lambda: daemon.health() == "SERVING", "the clock is right again")
    assert outcome(daemon.sign) == "KEY_VERSION_NOT_ACTIVE"


def test_officers_confirm_a_clock_that_is_right(machine: Machine) -> None:
    daemon = machine.daemon
    daemon.start()
    machine.jump(DAY)
    assert outcome(daemon.sign) == "CLOCK_DOUBTFUL"
    Office(daemon.dev).do("clock")
    until(lambda: daemon.health() == "SERVING", "it serves again")
    assert daemon.sign() == {"ok": 3}
    assert abs(machine.records()[-1].time_us / 1e6 - time.time() - DAY) < 3600


def test_officers_say_which_times_were_wrong(machine: Machine) -> None:
    """A start with a wrong clock, within what a machine may be off, is noticed too late."""
    daemon = machine.daemon
    daemon.start()
    assert daemon.sign() == {"ok": 3}
    assert daemon.stop() == 0
    first_wrong = len(machine.records())
    machine.jump(20 * DAY)
    daemon.start()
    assert daemon.sign() == {"ok": 3}
    assert daemon.stop() == 0
    daemon.start(ready=False)
    assert "behind the audit log" in daemon.reason()
    assert outcome(daemon.sign) == "CLOCK_DOUBTFUL"
    office = Office(daemon.dev)
    [problem] = office.problems("clock")
    assert "name the first record whose time is wrong" in problem
    office.do("clock", wrong_from=first_wrong)
    until(lambda: daemon.health() == "SERVING", "it serves again")
    assert daemon.sign() == {"ok": 3}
    written = machine.records()
    [clock] = [each.seq for each in written if each.kind is RecordKind.CLOCK]
    right = [*written[:first_wrong], *written[clock:]]
    assert all(abs(each.time_us / 1e6 - time.time()) < DAY for each in right)
    assert all(each.time_us / 1e6 > time.time() + DAY for each in written[first_wrong:clock])
    # What was confirmed is in the log: it also counts after a restart.
    assert daemon.stop() == 0
    daemon.start()
    assert daemon.sign() == {"ok": 3}


def test_a_machine_that_was_off_for_too_long_waits_for_officers(machine: Machine) -> None:
    daemon = machine.daemon
    daemon.start()
    assert daemon.sign() == {"ok": 3}
    assert daemon.stop() == 0
    machine.jump(31 * DAY)
    daemon.start(ready=False)
    assert "ahead of the audit log" in daemon.reason()
    assert outcome(daemon.sign) == "CLOCK_DOUBTFUL"
    Office(daemon.dev).do("clock")
    until(lambda: daemon.health() == "SERVING", "it serves again")
    assert daemon.sign() == {"ok": 3}
    assert all(each.time_us / 1e6 < time.time() + 32 * DAY for each in machine.records())
