import re
from html.parser import HTMLParser
from typing import Any

import pytest

from signer.hsm.front.slot import WorkerStatus
from signer.observe.history import Sample
from signer.observe.page import EVERYTHING_STOPPED, DaemonState, page
from signer.observe.reports import KEPT_ALARMS, Alarms
from signer.text import size

NOW, DAY = 1_800_000_000.0, 86_400.0
GAUGES: dict[str, dict[tuple[str, ...], float]] = {
    "signer_config_info": {("ab" * 32,): 1},
    "signer_pin_latched": {("main",): 0},
    "signer_queue_items": {("high",): 2, ("normal",): 1500},
    "signer_key_versions": {("ACTIVE",): 12_345},
    "signer_key_expiry_timestamp_seconds": {("01",): NOW + 10 * DAY, ("",): NOW + 200 * DAY},
    "signer_keys_ended": {("01",): 0, ("02",): 3, ("",): 0},
    "signer_key_lifetime_used_ratio": {("01",): 0.79},
    "signer_tls_expiry_timestamp_seconds": {("server",): NOW - 2 * DAY},
    "signer_officers": {("valid",): 3, ("ended",): 0, ("early",): 0},
    "signer_officers_needed": {(): 2},
    "signer_officer_expiry_timestamp_seconds": {(): NOW + 300 * DAY},
    "signer_calls_at_work": {(): 3},
    "signer_operations_pending": {(): 4},
    "signer_disk_free_bytes": {(): 5e9},
    "signer_disk_low_bytes": {(): 2.5e8},
    "signer_audit_checkpoint_timestamp_seconds": {(): NOW - 1},
}


def seen(**changes: Any) -> DaemonState:
    usual: dict[str, Any] = {
        "host": "hsm-one",
        "name": "signer/audit",
        "now": NOW,
        "monotonic": 5000.0,
        "started": NOW - DAY,
        "reasons": [],
        "away": [],
        "suspended": [],
        "doubts": [],
        "gauges": GAUGES,
        "workers": [WorkerStatus("main", 7, "serving", 1, 1_234_567, "")],
        "samples": [Sample(4990.0, 100.0, 1.0, 0.01, 0.05)],
        "alarms": [],
    }
    return DaemonState(**usual | changes)


class Strict(HTMLParser):
    """Reads a page: its text, and whether every element is closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not {name for name, _ in attrs} & {"href", "src", "onclick", "onload", "action"}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


def text_of(**changes: Any) -> str:
    return Strict(page(seen(**changes))).text


def test_a_healthy_daemon_at_a_glance() -> None:
    text = text_of()
    assert text.startswith("SERVING: hsm-one Signer SERVING hsm-one, log signer/audit, version ")
    for part in (
        "started 2027-01-14 08:00:00 UTC",
        "policy abababababab",
        "signed: now 100, highest 100 a second",
        "failed or refused: now 1, highest 1 a second",
        "p50 (half are faster): now 10, highest 10 ms",
        "p99 (99 of 100 are faster): now 50, highest 50 ms",
        "main serving 1,234,567 1",
        "Items in the queue 1,502",
        "Calls in progress 3",
        "Proposals to approve 4",
        "12,345 ACTIVE",
        "Newest checkpoint 2027-01-15 07:59:59 UTC",
        "4.66 GiB free; below 238 MiB nothing is signed",
        "docs/runbook.md",
        "None since the start.",
    ):
        assert part in text


def test_a_daemon_that_serves_without_a_token_is_degraded() -> None:
    told = "token b is away: it is locked"
    text = text_of(away=[told])
    assert text.startswith("DEGRADED: hsm-one Signer DEGRADED")
    assert told in text
    assert text_of(away=[told], reasons=["stopped"]).startswith("NOT SERVING: ")


def test_a_stop_of_everything_does_not_look_healthy() -> None:
    told = f"{EVERYTHING_STOPPED} since 2027-01-15T07:00:00Z"
    html = page(seen(suspended=[told, "2 facilities are suspended"]))
    text = Strict(html).text
    assert text.startswith("SUSPENDED: hsm-one Signer SUSPENDED")
    assert f'<li class="bad">{told}</li><li class="bad">2 facilities are suspended</li>' in html
    some = page(seen(suspended=["1 group is suspended"]))
    assert Strict(some).text.startswith("SERVING: ")
    assert '<li class="bad">1 group is suspended</li>' in some


@pytest.mark.parametrize(("free", "tone"), [(2e8, "bad"), (6e8, "soon"), (5e9, "")])
def test_a_disk_that_is_full_is_red(free: float, tone: str) -> None:
    html = page(seen(gauges=GAUGES | {"signer_disk_free_bytes": {(): free}}))
    assert f'<span class="{tone}">{size(free)} free; below 238 MiB' in html


def test_what_falls_due_is_listed_the_soonest_first() -> None:
    text = text_of()
    first = "keys of group 02 3 ended TLS certificate: server -2 days"
    assert re.search(f"{first} .* next key of group 01 10 days", text)
    assert "without a group" not in text
    later = GAUGES | {
        "signer_key_expiry_timestamp_seconds": {},
        "signer_keys_ended": {("01",): 0},
        "signer_tls_expiry_timestamp_seconds": {("server",): NOW + 100 * DAY},
    }
    assert "Ends within 90 days Nothing." in text_of(gauges=later)


def test_a_key_that_has_nearly_made_its_signatures_falls_due() -> None:
    assert "lifetime" not in text_of()
    shares = {("01",): 0.8, ("",): 0.96}
    html = page(seen(gauges=GAUGES | {"signer_key_lifetime_used_ratio": shares}))
    assert (
        '<td>lifetime of a key of group 01</td><td><span class="soon">80 % used</span></td>' in html
    )
    assert 'without a group</td><td><span class="bad">96 % used</span></td>' in html


def test_certificates_of_officers_fall_due_and_one_that_has_ended_is_red() -> None:
    ok = text_of()
    assert "Officers 3 of 3 have a valid certificate; operations need 2" in ok
    assert "officer" not in ok[ok.index("Ends within") :]
    soon = GAUGES | {"signer_officer_expiry_timestamp_seconds": {(): NOW + 5 * DAY}}
    assert "next certificate of an officer 5 days" in text_of(gauges=soon)
    ended = GAUGES | {
        "signer_officers": {("valid",): 1, ("ended",): 2, ("early",): 0},
        "signer_officer_expiry_timestamp_seconds": {},
    }
    assert "certificates of officers 2 ended" in text_of(gauges=ended)
    few = "1 of 3 have a valid certificate; operations need 2"
    assert f'<span class="bad">{few}</span>' in page(seen(gauges=ended))


def test_what_is_wrong_comes_first() -> None:
    html = page(
        seen(
            reasons=["token main: the worker hung and was killed"],
            doubts=["the clock is 30 s behind the audit log"],
            gauges=GAUGES | {"signer_pin_latched": {("main",): 1}},
            workers=[WorkerStatus("main", 0, "failed", 9, 0, "the worker hung and was killed")],
        )
    )
    text = Strict(html).text
    assert text.startswith("NOT SERVING: hsm-one Signer NOT SERVING")
    assert text.index("token main: the worker hung") < text.index("The last hour")
    assert text.index("the clock is 30 s behind") < text.index("The last hour")
    assert "main (PIN latched) failed 0 9 the worker hung and was killed" in text
    assert '<span class="bad">NOT SERVING</span>' in html


@pytest.mark.parametrize("place", ["name", "reasons", "doubts", "why", "alarm"])
def test_no_text_becomes_html(place: str) -> None:
    evil = "<script>alert(1)</script>&amp;"
    alarms = Alarms()
    alarms.add(NOW, "not_ready", evil)
    places: dict[str, dict[str, Any]] = {
        "name": {"name": evil},
        "reasons": {"reasons": [evil]},
        "doubts": {"doubts": [evil]},
        "why": {"workers": [WorkerStatus("main", 1, "failed", 1, 1, evil)]},
        "alarm": {"alarms": alarms.newest()},
    }
    read = Strict(page(seen(**places[place])))
    assert "script" not in read.tags
    assert evil in read.text


def test_an_empty_daemon_has_a_page() -> None:
    text = text_of(
        samples=[],
        workers=[],
        gauges={name: {} for name in GAUGES} | {"signer_config_info": {("",): 1}},
    )
    assert "signed: no data" in text
    assert "Newest checkpoint none yet" in text


def test_alarms_are_the_newest_ones_and_count_what_comes_again() -> None:
    alarms = Alarms()
    for number in range(30):
        alarms.add(number, "worker_left", f"token {number}")
    alarms.add(50, "worker_left", "token 29")
    alarms.add(51, "worker_left", "token 29")
    newest = alarms.newest()
    assert len(newest) == KEPT_ALARMS
    assert newest[0] == (51, "worker_left", "token 29", 3)
    assert newest[-1].text == "token 10"
    assert "token 29 (3 times)" in text_of(alarms=newest)
