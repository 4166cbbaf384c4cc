"""The running daemon on a disk of the audit log that fails, fills up or is slow."""

import hashlib
import os
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from signer.audit.format.record import Record, RecordKind
from signer.audit.format.segments import list_segments
from signer.audit.read.reader import Reader
from signer.client import ItemResult, SignerClientError
from tests.daemon import RECORDS, SECONDS, Daemon, correct, until

PROGRAM = Path(__file__).with_name("serve_with_faults.py")
NEVER = "3600"
"""Seconds between two looks of the daemon at itself: what happens meanwhile, it was told."""


class Faults:
    """What befalls the disk of a daemon."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def begin(self, daemon: Daemon, tick: str) -> None:
        daemon.program = [str(PROGRAM), str(self.folder), tick]
        daemon.start()

    def set(self, name: str) -> None:
        (self.folder / name).touch()

    def clear(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def waiting(self) -> bool:
        return (self.folder / "waiting").exists()


@pytest.fixture
def faults(tmp_path: Path, daemon: Daemon) -> Iterator[Faults]:
    assert daemon.process is None
    made = Faults(tmp_path / "faults")
    yield made
    made.clear("slow")  # or the daemon could not end


def outcome(call: Callable[[], object]) -> str:
    """``ok``, or the reason why a call failed."""
    try:
        call()
    except SignerClientError as error:
        return error.reason
    return "ok"


def records(daemon: Daemon) -> list[Record]:
    reader = Reader(list_segments(daemon.folder / "audit"))
    return list(reader.records(0, reader.size))


@pytest.mark.parametrize("fault", ["failed", "full"])
def test_health_tells_before_the_first_caller_is_refused(
    daemon: Daemon, faults: Faults, fault: str
) -> None:
    faults.begin(daemon, NEVER)
    assert daemon.sign() == {"ok": 3}
    faults.set(fault)
    ends: list[tuple[str, str]] = []
    with daemon.client() as client:

        def call() -> None:
            reason = "ok"
            while reason == "ok":  # the writer looks at a full disk a moment later
                reason = outcome(lambda: client.sign_batch(RECORDS, "MESSAGE", [b"m"]))
            ends.append((reason, client.health()))

        callers = [threading.Thread(target=call) for _ in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert ends == [("AUDIT_UNAVAILABLE", "NOT_SERVING")] * 8
    assert "audit log" in daemon.reason()
    until(lambda: '"audit_stopped"' in daemon.log.read_text(), "the line is written")
    assert daemon.log.read_text().count('"audit_stopped"') == 1

    # The disk is well again: only a restart resumes.
    faults.clear(fault)
    assert outcome(daemon.sign) == "AUDIT_UNAVAILABLE"
    assert daemon.health() == "NOT_SERVING"
    assert daemon.stop() == 0
    daemon.start()
    assert daemon.sign() == {"ok": 3}
    assert daemon.run("audit", "verify").code == 0


CALLS = 4


def test_a_slow_disk_makes_calls_wait_and_nothing_else(daemon: Daemon, faults: Faults) -> None:
    daemon.configure(limits={"calls": 2 * CALLS, "calls_per_client": CALLS})
    faults.begin(daemon, "0.05")
    messages = [os.urandom(20) for _ in range(CALLS)]
    with daemon.client() as client, ThreadPoolExecutor(CALLS) as threads:

        def sign(message: bytes, timeout: float = SECONDS) -> list[ItemResult]:
            return client.sign_batch(RECORDS, "MESSAGE", [message] * 5, timeout=timeout)

        def place() -> str:
            """Whether there is a place for a call, seen by one that does not wait for the disk."""
            return outcome(lambda: client.get_key(RECORDS))

        def insist(message: bytes) -> list[ItemResult]:
            """Signs, though a look for a place may have taken this one."""
            while True:
                try:
                    return sign(message)
                except SignerClientError as error:
                    if error.reason != "OVERLOADED":
                        raise

        assert all(result.error is None for result in sign(b"before"))
        faults.set("slow")
        hurried = threads.submit(outcome, lambda: sign(b"hurried", timeout=1.0))
        until(faults.waiting, "the sync hangs with the hurried intent")
        waiting = [threads.submit(insist, message) for message in messages[1:]]

        # Deadlines run, and free their places; the others go on waiting.
        assert hurried.result(SECONDS) in {"DEADLINE_EXCEEDED", "DEADLINE_TOO_SHORT"}
        until(lambda: place() == "ok", "a place is free")
        waiting.append(threads.submit(insist, messages[0]))

        # Now all places are taken: whoever comes is refused, and need not wait to hear it.
        until(lambda: place() == "OVERLOADED", "all places are taken")
        assert {outcome(lambda: sign(b"more")) for _ in range(20)} == {"OVERLOADED"}
        assert not any(call.done() for call in waiting)

        # It serves, and says why it is slow.
        assert (daemon.health(), daemon.reason()) == ("SERVING", "")
        until(lambda: '"audit_slow"' in daemon.log.read_text(), "the alarm")
        assert daemon.metric("signer_audit_commit_started_timestamp_seconds") > 0

        faults.clear("slow")
        answers = [call.result(SECONDS) for call in waiting]
        assert all(result.error is None for result in sign(b"after"))

    public = daemon.public_key()
    for message, results in zip([*messages[1:], messages[0]], answers, strict=True):
        assert all(correct(public, message, result.signature) for result in results)
    assert daemon.log.read_text().count('"audit_slow"') == 1
    until(lambda: '"audit_slow_over"' in daemon.log.read_text(), "the end is told")
    assert daemon.metric("signer_audit_commit_started_timestamp_seconds") == 0
    assert '"not_ready"' not in daemon.log.read_text()
    until(lambda: daemon.metric("signer_audit_open_intents") == 0, "every intent is closed")
    assert_on_record(daemon, [result.signature for results in answers for result in results])
    assert daemon.run("audit", "verify").code == 0


def assert_on_record(daemon: Daemon, signatures: list[bytes]) -> None:
    """What was answered is in the log, and what was too late was closed and not signed."""
    written = records(daemon)
    recorded = {
        each.column.item(place)
        for each in written
        if each.kind is RecordKind.OUTCOME and each.column is not None
        for place in range(each.column.count)
    }
    assert set(signatures) <= recorded
    hurried = hashlib.sha256(b"hurried").digest()
    [late] = [
        each.seq
        for each in written
        if each.kind is RecordKind.INTENT
        and each.column is not None
        and each.column.item(0) == hurried
    ]
    [closed] = [
        each.fields
        for each in written
        if each.kind is RecordKind.INDETERMINATE and each.fields["intent"] == late
    ]
    assert closed["reason"] == "DEADLINE_TOO_SHORT"


def remove(segment: Path) -> None:
    segment.unlink()


def rename(segment: Path) -> None:
    segment.rename(segment.with_suffix(".old"))


def replace(segment: Path) -> None:
    copy = segment.with_suffix(".copy")
    shutil.copyfile(segment, copy)
    copy.rename(segment)


def empty(segment: Path) -> None:
    segment.write_bytes(b"")


def cut(segment: Path) -> None:
    os.truncate(segment, segment.stat().st_size - 1)


@pytest.mark.parametrize("damage", [remove, rename, replace, empty, cut])
def test_a_log_that_auditors_would_not_find_stops_signing(
    daemon: Daemon, damage: Callable[[Path], None]
) -> None:
    """Its descriptor would take records for as long as the daemon lives."""
    daemon.configure({"workers": 1})  # its login is on record before the first signature
    daemon.start()
    assert daemon.sign() == {"ok": 3}
    segment = list_segments(daemon.folder / "audit")[-1].path
    kept = segment.with_suffix(".kept")
    shutil.copyfile(segment, kept)
    damage(segment)
    until(lambda: daemon.health() == "NOT_SERVING", "health tells, without a call")
    assert segment.name in daemon.reason()
    assert outcome(daemon.sign) == "AUDIT_UNAVAILABLE"
    assert daemon.metric("signer_audit_stopped") == 1
    assert daemon.stop() == 0
    kept.replace(segment)
    for left in segment.parent.glob("*.old"):
        left.unlink()
    daemon.start()
    assert daemon.sign() == {"ok": 3}
    assert daemon.run("audit", "verify").code == 0


def test_without_a_descriptor_for_a_moment_the_log_goes_on(daemon: Daemon) -> None:
    settings = daemon.settings
    settings["audit"]["segment_bytes"] = 1 << 20
    daemon.config.write_text(yaml.safe_dump(settings))
    daemon.start()
    process = daemon.process
    assert process is not None

    def segments() -> int:
        return len(list_segments(daemon.folder / "audit"))

    with daemon.client() as client:

        def sign() -> None:
            results = client.sign_batch(RECORDS, "MESSAGE", [os.urandom(9)] * 4000, timeout=SECONDS)
            assert all(result.error is None for result in results)

        sign()
        assert segments() == 1
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (3, hard))  # no further one
        for _ in range(4):
            sign()
        assert segments() == 1
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (hard, hard))
        time.sleep(1)
        sign()
        until(lambda: segments() == 2, "the next segment is begun")
        sign()
    assert "cannot be opened now" in daemon.log.read_text()
    assert daemon.stop() == 0
    assert daemon.run("audit", "verify").code == 0
