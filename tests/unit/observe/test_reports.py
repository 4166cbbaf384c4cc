import json
from collections import Counter
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from signer.algorithms import Algorithm
from signer.events import (
    AuditCommitted,
    AuditSlow,
    Bug,
    CallEnded,
    ChunkEnded,
    Event,
    ItemsEnded,
    OperationBug,
    OperationFailed,
    QuotaRefused,
    Ready,
    ReloadRefused,
    RequestsForgotten,
    SuspensionsChanged,
    WrongSignatures,
)
from signer.model import Format
from signer.observe.gauges import LiveGauges
from signer.observe.reports import Reports


class Written:
    """Reports whose log is read by a test."""

    def __init__(self, level: str = "info") -> None:
        self._written = bytearray()
        self.reports = Reports(level=level, write=self._written.extend)

    def lines(self) -> list[dict[str, Any]]:
        """Returns the lines since the last time."""
        self.reports.lines.close()
        written = self._written.decode()
        self._written.clear()
        return [json.loads(line) for line in written.splitlines()]


@pytest.fixture
def log() -> Written:
    return Written()


def emit(reports: Reports, event: Event) -> None:
    reports.handlers[type(event)](event)


def test_a_call_is_one_line_and_one_count(log: Written) -> None:
    reports = log.reports
    emit(reports, CallEnded("/m", "OK", "ok", 0.25, {"principal": "p"}))
    emit(reports, CallEnded("/m", "NOT_FOUND", "KEY_NOT_FOUND", 0.5, {}))
    good, bad = log.lines()
    assert (good["level"], good["principal"], good["seconds"]) == ("info", "p", 0.25)
    assert (bad["level"], bad["code"], bad["reason"]) == ("warning", "NOT_FOUND", "KEY_NOT_FOUND")
    text = generate_latest(reports.metrics.registry).decode()
    assert 'signer_requests_total{code="OK",method="/m"} 1.0' in text
    assert 'signer_requests_total{code="NOT_FOUND",method="/m"} 1.0' in text
    assert 'signer_request_duration_seconds_sum{method="/m"} 0.75' in text
    failures = [line for line in text.splitlines() if 'call_failures_total{method="/m"' in line]
    assert failures == ['signer_call_failures_total{method="/m",reason="KEY_NOT_FOUND"} 1.0']


def test_a_client_at_its_own_limit_is_not_the_service_at_its_limit() -> None:
    reports = Reports()
    for limit in ("calls_per_client", "calls", "queued_items"):
        emit(reports, CallEnded("/m", "RESOURCE_EXHAUSTED", "OVERLOADED", 0, {"limit": limit}))
    text = generate_latest(reports.metrics.registry).decode()
    assert 'signer_call_failures_total{method="/m",reason="OVERLOADED"} 2.0' in text
    assert 'signer_call_failures_total{method="/m",reason="OVERLOADED_BY_CLIENT"} 1.0' in text


def test_a_bug_is_told_without_its_text(log: Written) -> None:

    def fail() -> None:
        raise ValueError("Nguyen Van A")

    try:
        fail()
    except ValueError as error:
        emit(log.reports, Bug("/m", error, {"call_id": "an-id", "principal": "someone"}))
    [line] = log.lines()
    assert "Nguyen" not in str(line)
    assert (line["event"], line["call_id"], line["error"]) == ("bug", "an-id", "ValueError")
    assert (line["reason"], line["principal"]) == ("INTERNAL", "someone")
    assert [place.partition(":")[0] for place in line["places"]] == ["test_reports.py"] * 2


def test_a_refused_reload_names_every_problem(log: Written) -> None:
    emit(log.reports, ReloadRefused("policy", ["a.b: is missing"]))
    [line] = log.lines()
    assert (line["level"], line["source"], line["problems"]) == (
        "error",
        "policy",
        ["a.b: is missing"],
    )


def test_wrong_signatures_are_counted_and_cried_out(log: Written) -> None:
    reports = log.reports
    emit(reports, ChunkEnded("t", 0.5, 10, 5, 0))
    emit(reports, ChunkEnded("t", 0.5, 10, 10, 2))
    assert log.lines() == []
    emit(reports, WrongSignatures("t", "facilities/f/keys/k/versions/1", 2))
    [line] = log.lines()
    assert (line["event"], line["level"], line["wrong"]) == ("wrong_signatures", "error", 2)
    assert line["key_version"] == "facilities/f/keys/k/versions/1"
    text = generate_latest(reports.metrics.registry).decode()
    assert 'signer_signature_checks_total{result="correct"} 13.0' in text
    assert 'signer_signature_checks_total{result="wrong"} 2.0' in text
    assert 'signer_worker_busy_seconds_total{token="t"} 1.0' in text


def test_items_are_counted_by_how_they_ended() -> None:
    reports, reasons = Reports(), Counter({"ok": 7, "PAYLOAD_INVALID": 2})
    emit(reports, ItemsEnded("01", Format.JWS, Algorithm.ES256, reasons))
    emit(reports, QuotaRefused("01", "day"))
    text = generate_latest(reports.metrics.registry).decode()
    labels = 'algorithm="ES256",format="JWS",group="01"'
    assert f'signer_items_total{{{labels},reason="ok"}} 7.0' in text
    assert f'signer_items_total{{{labels},reason="PAYLOAD_INVALID"}} 2.0' in text
    assert 'signer_quota_rejections_total{group="01",window="day"} 1.0' in text


def test_gauges_are_read_when_they_are_asked_for() -> None:
    registry = CollectorRegistry()
    values: dict[tuple[str, ...], float] = {("a",): 1.0}
    registry.register(LiveGauges(lambda: {"signer_pin_latched": values}))
    assert b'signer_pin_latched{token="a"} 1.0' in generate_latest(registry)
    values[("a",)] = 2.0
    assert b'signer_pin_latched{token="a"} 2.0' in generate_latest(registry)


def test_a_disk_that_hangs_is_cried_out_and_its_end_told(log: Written) -> None:
    reports = log.reports
    emit(reports, AuditSlow(1_767_571_200.5))
    emit(reports, AuditCommitted(1, 2.00049))
    slow, over = log.lines()
    assert (slow["event"], slow["level"], slow["since"]) == (
        "audit_slow",
        "warning",
        1_767_571_200.5,
    )
    assert (over["event"], over["seconds"]) == ("audit_slow_over", 2.0)


def test_forgotten_request_ids_are_counted() -> None:
    reports = Reports()
    emit(reports, RequestsForgotten(3))
    emit(reports, RequestsForgotten(1))
    counted = generate_latest(reports.metrics.registry).decode()
    assert "signer_audit_requests_forgotten_total 4.0" in counted


def test_alarms_say_what_they_are_about_without_names_of_facilities() -> None:
    reports = Reports()
    identity = "0123456789abcdef"
    emit(reports, SuspensionsChanged(["everything", "facility 01-001", "facility x", "group 01"]))
    emit(reports, SuspensionsChanged([]))
    emit(reports, OperationFailed(identity, "rotate", "FAILED", "a note"))
    emit(reports, OperationBug(identity, ValueError("x")))
    assert [alarm.text for alarm in reports.alarms.newest()] == [
        "operation 01234567 ended with an internal error: see the log",
        "an operation failed (rotate): signer operations show 01234567",
        "suspended now: nothing",
        "suspended now: everything, 2 facilities, 1 group",
    ]


def test_what_is_dropped_is_counted_and_alarmed() -> None:
    def fail(_: bytes) -> None:
        raise OSError("nobody reads")

    reports = Reports(write=fail)
    emit(reports, Ready())
    reports.lines.close()
    reports.spans_dropped(3)
    newest = [(alarm.event, alarm.times) for alarm in reports.alarms.newest()]
    assert newest == [("spans_dropped", 1), ("log_lines_dropped", 1)]
    page = generate_latest(reports.metrics.registry).decode()
    assert "signer_log_lines_dropped_total 1.0" in page
    assert "signer_spans_dropped_total 3.0" in page
