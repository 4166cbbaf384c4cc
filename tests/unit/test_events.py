"""Events reach their listeners side by side, whatever one of these does."""

import asyncio
import contextvars
import json
from collections import Counter
from typing import Any

import pytest
from prometheus_client import generate_latest

from signer.events import (
    CALL,
    REPORT_SECONDS,
    AuditCommitted,
    Bug,
    CallBegan,
    CallDenied,
    CallEnded,
    CallTrace,
    ChunkEnded,
    Event,
    Events,
    LastingFailures,
    LoginEnded,
    WorkerLeft,
    stages,
)
from signer.observe.reports import Reports
from tests.stand_ins import EVENTS


def test_a_listener_that_raises_disturbs_neither_emitter_nor_others() -> None:
    seen: list[Event] = []

    def fail(event: Event) -> None:
        raise ValueError(event)

    events = Events({WorkerLeft: fail, Bug: fail}, {WorkerLeft: seen.append, Bug: seen.append})
    event = WorkerLeft("t", "died", "")
    events.emit(event)
    bug, last = seen
    assert last == event
    assert isinstance(bug, Bug)
    assert (bug.where, type(bug.error)) == ("a listener of WorkerLeft", ValueError)


def test_an_event_goes_only_to_those_who_listen_to_its_type() -> None:
    seen: list[Event] = []
    events = Events({LoginEnded: seen.append}, {})
    events.emit(WorkerLeft("t", "died", ""))
    events.emit(LoginEnded("t", "ok"))
    assert seen == [LoginEnded("t", "ok")]


def test_a_failure_that_lasts_is_reported_once_a_minute() -> None:
    now = 0.0
    failures = LastingFailures(lambda: now)
    assert [failures.is_news(each) for each in "abab"] == [True, True, False, False]
    now = REPORT_SECONDS - 1
    assert not failures.is_news("a")
    now = REPORT_SECONDS
    assert [failures.is_news(each) for each in "aa"] == [True, False]
    failures.over()
    assert failures.is_news("a")
    assert all(failures.is_news(str(number)) for number in range(100))
    assert failures.is_news("0"), "only the newest few are remembered"
    assert not failures.is_news("99")


WORK = CallTrace()
WORK.stages.append(("hsm", 0.0, 0.5))
VALUES: dict[str, Any] = {
    "work": WORK,
    "metadata": [],
    "reasons": Counter({"ok": 1}),
    "error": ValueError("x"),
    "notes": {"principal": "p"},
    "changed": {"policy_changed": True},
    "problems": ["a: b"],
    "suspended": [],
    "differences": ["one"],
    **dict.fromkeys(("began", "seconds", "busy", "since"), 0.5),
    **dict.fromkeys(("items", "checked", "records", "requests", "size", "times"), 3),
    **dict.fromkeys(("wrong", "versions", "revision"), 0),
}


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
def test_every_event_is_counted_or_logged(kind: type[Any]) -> None:
    lines = bytearray()
    reports = Reports(["t"], level="debug", write=lines.extend)
    before = generate_latest(reports.metrics.registry)
    fields = kind._fields
    event = kind(**{field: VALUES.get(field, "text") for field in fields})
    reports.handlers.get(kind, str)(event)  # a CallDenied is only recorded
    reports.lines.close()
    counted = generate_latest(reports.metrics.registry) != before
    assert counted or lines or kind in (CallBegan, CallDenied)


def test_what_a_call_emits_is_in_its_log_line() -> None:
    written = bytearray()
    reports = Reports(["t"], write=written.extend)
    events = Events(reports.handlers)
    CALL.set(CallTrace())
    events.emit(CallBegan("/m", []))
    stages().append(("hsm", 0.0, 0.25))
    stages().append(("hsm", 0.0, 0.25))
    events.emit(ChunkEnded("t", 0.1, 1, 1, 0))
    events.emit(AuditCommitted(1, 0.001))
    events.emit(CallEnded("/m", "OK", "ok", 1.0, {}))
    CALL.set(None)
    events.emit(CallEnded("/m", "OK", "ok", 1.0, {}))
    reports.lines.close()
    first, second = map(json.loads, written.splitlines())
    assert first["timings"] == {"hsm": 0.5}
    assert "timings" not in second


def test_calls_whose_tasks_take_turns_keep_their_own_times() -> None:
    written = bytearray()
    reports = Reports(write=written.extend)
    events = Events(reports.handlers)

    def ended(stage: str, seconds: float) -> None:
        stages().append((stage, 0.0, seconds))

    async def call(method: str, seconds: float) -> None:
        CALL.set(CallTrace())
        events.emit(CallBegan(method, []))
        for _ in range(2):
            await asyncio.sleep(0)
            context = contextvars.copy_context()
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, context.run, ended, "audit", seconds)
            # A thread without the context of a call: its stages are no call's.
            await loop.run_in_executor(None, ended, "audit", seconds)
        events.emit(CallEnded(method, "OK", "ok", 1.0, {}))

    async def calls() -> None:
        await asyncio.gather(call("/one", 0.25), call("/other", 2.0))

    asyncio.run(calls())
    reports.lines.close()
    timings = {line["method"]: line["timings"] for line in map(json.loads, written.splitlines())}
    assert timings == {"/one": {"audit": 0.5}, "/other": {"audit": 4.0}}
