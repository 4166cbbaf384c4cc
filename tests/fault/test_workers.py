"""Workers that are killed, stopped or sent signals, under load."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from signer.audit.format.record import RecordKind
from signer.audit.format.segments import list_segments
from signer.audit.read.reader import Reader
from tests.daemon import Daemon, kill_workers, until
from tests.fault.daemon import Load
from tests.fault.shim import Action, Shim

pytestmark = pytest.mark.usefixtures("two_workers")


@pytest.mark.parametrize("times", [3])
def test_callers_do_not_notice_one_killed_worker(daemon: Daemon, times: int) -> None:
    daemon.start()
    with Load(daemon, callers=4, items=400) as load:
        for _ in range(times):
            kill_workers(daemon.folder, daemon.workers()[0])
            load.more()
            until(lambda: len(daemon.workers()) == 2, "the worker is replaced")
    assert load.ends.keys() - {"wrong"} == {"ok"}
    assert load.ends["wrong"] == 0
    assert set(load.calls) == {"ok"}
    assert daemon.metric("signer_worker_restarts_total", cause="died") == times
    assert daemon.reason() == ""
    assert attempts(daemon) == {1, 2}  # what a worker left was tried once more


def attempts(daemon: Daemon) -> set[object]:
    """How often batches were tried, as the audit log says."""
    reader = Reader(list_segments(daemon.folder / "audit"))
    written = reader.records(0, reader.size)
    return {each.fields["attempts"] for each in written if each.kind is RecordKind.OUTCOME}


def test_when_all_workers_are_killed_everything_is_answered(daemon: Daemon) -> None:
    daemon.start()
    with Load(daemon) as load:
        for _ in range(2):
            kill_workers(daemon.folder, *daemon.workers())
            load.more()
    assert set(load.ends) <= {"ok", "wrong", "HSM_UNAVAILABLE"}
    assert load.ends["wrong"] == 0
    assert load.without_hint == 0, "an item failed without RetryInfo"
    assert set(load.calls) == {"ok"}
    until(lambda: not daemon.reason(), "it serves again")
    assert daemon.sign(500) == {"ok": 500}
    until(lambda: len(daemon.workers()) == 2, "both are replaced")


def test_a_hanging_worker_is_killed_and_its_work_done_by_another(daemon: Daemon) -> None:
    daemon.configure(token={"hang_seconds": 1.0})
    daemon.start()
    with Load(daemon) as load:
        victim = daemon.workers()[0]
        victim.suspend()
        until(lambda: not victim.is_running(), "the hanging worker is killed")
        load.more()
    assert load.ends.keys() - {"wrong"} == {"ok"}
    assert load.ends["wrong"] == 0
    assert set(load.calls) == {"ok"}
    assert daemon.metric("signer_worker_restarts_total", cause="hang") == 1
    assert daemon.metric("signer_worker_restarts_total") == 1


def test_an_idle_worker_is_not_killed_as_hanging(daemon: Daemon) -> None:
    daemon.configure(token={"hang_seconds": 0.2})
    daemon.start()
    before = daemon.workers()
    assert daemon.sign() == {"ok": 3}
    for _ in range(3):
        time.sleep(0.3)  # silent for longer than a worker with work may be
        assert daemon.sign(1) == {"ok": 1}
    assert daemon.workers() == before


def test_workers_leave_signals_to_the_daemon(daemon: Daemon) -> None:
    daemon.start()
    until(lambda: daemon.metric("signer_workers", state="serving") == 2, "both serve")
    before = daemon.workers()
    for worker in before:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            worker.send_signal(number)
    assert daemon.sign(300) == {"ok": 300}
    assert daemon.workers() == before
    assert daemon.metric("signer_worker_restarts_total") == 0
    assert daemon.process is not None
    assert {os.getpgid(worker.pid) for worker in before} == {os.getpgid(daemon.process.pid)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_daemon_that_ends_under_load_ends_cleanly(daemon: Daemon, number: signal.Signals) -> None:
    daemon.start()
    with Load(daemon) as load:
        assert daemon.stop(number) == 0
        load._over.set()
    assert set(load.ends) <= {"ok", "wrong"}
    assert load.ends["wrong"] == 0


def test_workers_of_a_killed_daemon_leave(daemon: Daemon) -> None:
    daemon.start()
    assert daemon.process is not None
    workers = daemon.workers()
    assert len(workers) == 2
    daemon.process.kill()
    daemon.process.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []
    daemon.start()
    assert daemon.sign() == {"ok": 3}


def left(daemon: Daemon, workers: int) -> bool:
    """Whether so many workers have ended."""
    return daemon.metric("signer_worker_restarts_total") == workers


@pytest.mark.torture
@pytest.mark.parametrize(
    ("how", "times"), [("kill", 80), (Action.ABORT, 60), (Action.SEGFAULT, 60)]
)
def test_many_deaths_in_a_row(
    daemon: Daemon, shim_module: Path, shim: Shim, how: str | Action, times: int
) -> None:
    """Of one of two workers: by kill -9 at any moment, or by its module while it signs."""
    daemon.configure(token={"module": str(shim_module), "environment": shim.environment})
    daemon.start()
    with Load(daemon, callers=4, items=400) as load:
        for number in range(times):
            until(lambda: daemon.metric("signer_workers", state="serving") == 2, "both serve")
            if isinstance(how, Action):
                rule = shim.on("C_Sign", times=1, action=how)
                until(partial(getattr, rule, "spent"), "one of them dies")
                shim.clear()
            else:
                workers = daemon.workers()
                kill_workers(daemon.folder, workers[number % len(workers)])
            load.more(3)
            until(partial(left, daemon, number + 1), "the worker is replaced")
    assert load.ends.keys() - {"wrong"} == {"ok"}
    assert load.ends["wrong"] == 0
    assert set(load.calls) == {"ok"}
    assert daemon.metric("signer_worker_restarts_total") == times


@pytest.mark.torture
@pytest.mark.parametrize("times", [10])
def test_all_killed_again_and_again(daemon: Daemon, times: int) -> None:
    daemon.start()
    with Load(daemon, callers=4, items=400) as load:
        for _ in range(times):
            kill_workers(daemon.folder, *daemon.workers())
            load.more(3)
    assert set(load.ends) <= {"ok", "wrong", "HSM_UNAVAILABLE"}
    assert load.ends["wrong"] == 0
    assert load.without_hint == 0
    assert set(load.calls) == {"ok"}
    until(lambda: not daemon.reason(), "it serves again")
    assert daemon.sign(500) == {"ok": 500}
