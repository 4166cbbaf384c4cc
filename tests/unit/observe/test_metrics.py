"""Counters that somebody is woken by are there at 0, or their first event is never seen."""

from collections import Counter

from prometheus_client import generate_latest

from signer.algorithms import Algorithm
from signer.events import ItemsEnded
from signer.hsm.spec import FailureKind
from signer.model import Format
from signer.observe.catalogue import BY_NAME, closed
from signer.observe.metrics import SIGN_BATCH, Metrics
from signer.observe.reports import Reports


def samples(metrics: Metrics, name: str) -> dict[str, float]:
    """The values of a metric by the labels as they are written."""
    lines = generate_latest(metrics.registry).decode().splitlines()
    found = (line.removeprefix(name).rsplit(" ", 1) for line in lines if line.startswith(name))
    return {labels: float(value) for labels, value in found}


def test_what_needs_no_configuration_is_there_at_once() -> None:
    metrics = Metrics()
    checks = samples(metrics, "signer_signature_checks_total")
    assert checks == {'{result="correct"}': 0, '{result="wrong"}': 0}
    failures = samples(metrics, "signer_audit_failures_total")
    assert failures == {'{step="checkpoint"}': 0, '{step="shipping"}': 0}
    reasons = closed("signer_call_failures_total", "reason")
    assert samples(metrics, "signer_call_failures_total") == {
        f'{{method="{SIGN_BATCH}",reason="{reason}"}}': 0 for reason in reasons
    }
    assert samples(metrics, "signer_worker_restarts_total") == {}


def test_tokens_come_from_the_configuration() -> None:
    metrics = Metrics(["one", "two"])
    restarts = samples(metrics, "signer_worker_restarts_total")
    assert len(restarts) == 2 * len(FailureKind)
    assert set(restarts.values()) == {0}
    assert samples(metrics, "signer_login_attempts_total") == {
        f'{{result="{result}",token="{token}"}}': 0
        for token in ("one", "two")
        for result in ("ok", "pin_rejected", "login_failed")
    }


def test_all_reasons_of_items_come_with_the_first_of_a_kind() -> None:
    reports = Reports()
    metrics = reports.metrics
    for _ in range(2):
        event = ItemsEnded("01", Format.JWS, Algorithm.ES256, Counter({"ok": 7}))
        reports.handlers[ItemsEnded](event)
    kind = 'algorithm="ES256",format="JWS",group="01"'
    assert samples(metrics, "signer_items_total") == {
        f'{{{kind},reason="{reason}"}}': 14 * (reason == "ok")
        for reason in closed("signer_items_total", "reason")
    }


def test_a_closed_set_is_that_of_the_catalogue() -> None:
    assert closed("signer_queue_items", "class") == ("high", "normal", "low")
    assert closed("signer_items_total", "group") == ()
    assert set(BY_NAME) >= {"signer_calls_limit", "signer_time_seconds"}


def test_a_refused_call_counts_as_failed_on_the_page() -> None:
    """Not only items: where every call is refused, nothing else would be seen."""
    metrics = Metrics()
    before = metrics.totals()
    metrics.call_failures(SIGN_BATCH, "OVERLOADED").inc(3)
    metrics.call_failures("/signer.v1.KeyService/GetKey", "KEY_NOT_FOUND").inc()
    assert metrics.totals().failed == before.failed + 3
