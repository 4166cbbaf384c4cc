"""The running daemon on a machine whose clock jumps, or was wrong."""

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from signer.audit.format.record import DOUBTFUL, Record, RecordKind, Value
from signer.audit.format.segments import list_segments
from signer.audit.read.reader import Reader
from signer.audit.write.recovery import open_audit_log
from signer.client import SignerClientError
from signer.clock import SystemClock
from tests.daemon import RECORDS, Daemon, until, verified
from tests.integration.officers import Office

PROGRAM = Path(__file__).with_name("serve_with_faults.py")
DAY = 24 * 3600
ORIGIN = "signer/audit"
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


def test_a_clock_that_nobody_confirmed_does_not_move_the_time_back(
    daemon: Daemon, tmp_path: Path
) -> None:
    """The clock of the stopped machine is set back, and a record says that this is right."""
    machine = Machine(daemon, tmp_path / "faults")
    machine.jump(20 * DAY)
    daemon.start()
    call, request = (RECORDS, "JWS", [b"{}"]), uuid.uuid4()
    with Office(daemon.dev).client("issuer") as client:
        signed = client.sign_batch(*call, request_id=request)
    assert daemon.stop() == 0
    last = machine.records()[-1]
    ago = last.time_us - 20 * DAY * 1_000_000
    approved: dict[str, Value] = {"operation": str(uuid.uuid4()), "content": b"", "signatures": []}
    clock: dict[str, Value] = {**approved, "wrong_from": 1, "right_until": ago}
    append(daemon, RecordKind.CLOCK, clock, ago)
    for _ in range(2):  # also when the record is behind a checkpoint
        daemon.start(ready=False)
        assert "behind the audit log" in daemon.reason()
        assert outcome(daemon.sign) == "CLOCK_DOUBTFUL"
        assert '"audit_problem"' in daemon.log.read_text()
        assert daemon.stop() == 0
        daemon.log.write_text("")
    assert all(each.time_us >= last.time_us for each in machine.records()[last.seq + 2 :])
    machine.jump(20 * DAY)  # to the log's time
    daemon.start()
    with Office(daemon.dev).client("issuer") as client:  # its id is not forgotten
        assert client.sign_batch(*call, request_id=request) == signed
    assert daemon.stop() == 0
    report = verified(daemon.folder / "audit", ORIGIN, whole=False)
    assert [text.split(":")[0] for text in report["problems"]] == [f"record {last.seq + 1}"]


def append(daemon: Daemon, kind: RecordKind, fields: dict[str, Value], time_us: int) -> None:
    """Appends a record to the log of a stopped daemon."""
    log = open_audit_log(
        daemon.folder / "audit",
        origin=ORIGIN,
        clock=SystemClock(),
        low_disk_bytes=1,
        ballast_bytes=0,
    )
    log.append(kind, fields, time_us=time_us)
    log.close()


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
