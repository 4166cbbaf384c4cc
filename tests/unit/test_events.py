"""Events reach their listeners side by side, whatever one of these does."""

from collections import Counter
from typing import Any

import pytest
from prometheus_client import generate_latest

from signer.events import (
    AuditCommitted,
    Bug,
    CallBegan,
    CallDenied,
    CallEnded,
    ChunkEnded,
    Event,
    Events,
    LoginEnded,
    StageEnded,
    WorkerLeft,
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


VALUES: dict[str, Any] = {
    "metadata": [],
    "reasons": Counter({"ok": 1}),
    "error": ValueError("x"),
    "notes": {"principal": "p"},
    "changed": {"policy_changed": True},
    "problems": ["a: b"],
    "suspended": [],
    "differences": ["one"],
    **dict.fromkeys(("began", "seconds", "busy", "since"), 0.5),
    **dict.fromkeys(("items", "checked", "records", "requests", "size"), 3),
    **dict.fromkeys(("wrong", "versions", "revision"), 0),
}


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
def test_every_event_is_counted_or_logged(
    kind: type[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    reports = Reports(["t"])
    before = generate_latest(reports.metrics.registry)
    fields = kind._fields
    event = kind(**{field: VALUES.get(field, "text") for field in fields})
    reports.handlers.get(kind, str)(event)  # a CallDenied is only recorded
    lines = capsys.readouterr()
    counted = generate_latest(reports.metrics.registry) != before
    assert counted or lines.out + lines.err or kind in (CallBegan, CallDenied)


def test_what_a_call_emits_is_in_its_log_line(capsys: pytest.CaptureFixture[str]) -> None:
    events = Events(Reports(["t"]).handlers)
    events.emit(CallBegan("/m", []))
    events.emit(StageEnded("hsm", 0.0, 0.25))
    events.emit(StageEnded("hsm", 0.0, 0.25))
    events.emit(ChunkEnded("t", 0.1, 1, 1, 0))
    events.emit(AuditCommitted(1, 0.001))
    events.emit(CallEnded("/m", "OK", "ok", 1.0, {}))
    events.emit(CallEnded("/m", "OK", "ok", 1.0, {}))
    written = capsys.readouterr()
    first, second = (written.out + written.err).splitlines()
    assert "'hsm': 0.5" in first or '"hsm": 0.5' in first
    assert "timings" not in second
