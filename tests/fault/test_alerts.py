"""Every alert fires: a real Prometheus watches real daemons, to which its fault happens.

Four daemons go through a story each, all at the same time, and one Prometheus sees all of
it (alert_stories.py). The stories come first, in a fixture; the tests then look at which
alerts have fired, and which have not.
"""

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.daemon import Daemon, until
from tests.fault.alert_stories import DISK, HSM, KEYS, PIN, STORIES, Machine, set_up
from tests.fault.watching import SHIPPED, Alert, Watching, hurried, without_durations

SERVICE = ""
FAULTS = (
    ("SignerDiskFilling", DISK),
    ("SignerDiskLow", DISK),
    ("SignerAuditStalled", DISK),
    ("SignerCallsNearLimit", DISK),
    ("SignerAuditSlow", DISK),
    ("SignerAuditStopped", DISK),
    ("SignerNotReady", DISK),
    ("SignerCheckpointOld", HSM),
    ("SignerCheckpointsFailing", HSM),
    ("SignerWrongSignature", HSM),
    ("SignerQueueOld", HSM),
    ("SignerWorkerRestarts", HSM),
    ("SignerLoginFailed", PIN),
    ("SignerPinLatched", PIN),
    ("SignerTokenDown", PIN),
    ("SignerKeysAway", PIN),
    ("SignerWorkersMissing", PIN),
    ("SignerTokenDiffers", KEYS),
    ("SignerRestarting", PIN),
    ("SignerClockDoubtful", PIN),
    ("SignerClockSkewed", PIN),
    ("SignerDown", PIN),
    ("SignerCertificateEnding", KEYS),
    ("SignerCertificateEndingSoon", KEYS),
    ("SignerKeyEnding", KEYS),
    ("SignerKeyEndingSoon", KEYS),
    ("SignerKeysEnded", KEYS),
    ("SignerKeyLifetimeNearlyUsed", KEYS),
    ("SignerKeyLifetimeUsed", KEYS),
    ("SignerOfficerCertificateEnding", KEYS),
    ("SignerOfficerCertificateEndingSoon", KEYS),
    ("SignerOfficerCertificateEnded", KEYS),
    ("SignerOperationsPending", KEYS),
    ("SignerQuotaStorm", KEYS),
    ("SignerMemoryHigh", KEYS),
    ("SignerAuditSnapshotMissing", KEYS),
    ("SignerLogLinesDropped", KEYS),
    ("SignerRegistryNotFollowed", KEYS),
    ("SignerErrorBudgetBurnFast", SERVICE),
    ("SignerErrorBudgetBurnSlow", SERVICE),
    ("SignerMissing", SERVICE),
)
"""Every alert, and to which daemon its fault happens."""
CONSEQUENCES = {
    KEYS: ("SignerNotReady",),
    HSM: ("SignerNotReady", "SignerTokenDown", "SignerKeysAway", "SignerWorkersMissing"),
    PIN: ("SignerNotReady", "SignerWorkerRestarts", "SignerCheckpointsFailing"),
}
"""What else is told of a daemon for the same faults."""
BUSY = ("SignerDown", "SignerAuditSlow")
"""What is true of any daemon while the machine of the tests has no time for it."""


class Seen(NamedTuple):
    """What Prometheus saw: before anything went wrong, and in the end."""

    calm: list[object]
    fired: Mapping[Alert, Mapping[str, str]]
    queries: dict[str, str]
    """What was wrong with the runbook's queries; empty for those that work."""


@pytest.fixture(scope="module")
def seen(shim_module: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("alerts")
    machines = set_up(folder, shim_module)
    daemons = {name: machine.daemon for name, machine in machines.items()}
    prometheus = None
    with ThreadPoolExecutor(len(machines)) as threads:
        try:
            list(threads.map(Daemon.start, daemons.values()))
            targets = {
                name: each.dev["metrics"].rpartition("/")[2] for name, each in daemons.items()
            }
            prometheus = Watching(tmp_path_factory.mktemp("prometheus"), targets)
            calm = watch_calm(machines, prometheus)
            stories = [
                threads.submit(story, machines[name], prometheus) for name, story in STORIES.items()
            ]
            wait(stories)
            for story in stories:
                story.result()
            queries = {query: problem(prometheus, query) for query in runbook_queries()}
            prometheus.leave()
            prometheus.until(Alert("SignerMissing", SERVICE))
            yield Seen(calm, {**prometheus.fired}, queries)
        finally:
            if prometheus is not None:
                prometheus.close()
            codes = [each.stop() for each in daemons.values() if each.running]
    assert set(codes) == {0}


def watch_calm(machines: dict[str, Machine], prometheus: Watching) -> list[object]:
    """Has everything go well for a while; returns what was alerted meanwhile."""
    looks = "min(count_over_time(up[30s])) > 3"
    measured = "count_over_time(job:signer_sli_bad:ratio5m[1m]) > 3"

    def long_enough() -> bool:
        assert {machine.sign() for machine in machines.values()} == {"ok"}
        return len(prometheus.query(measured)) == 2 and bool(prometheus.query(looks))

    until(long_enough, "all is scraped and measured", 120)
    quick = f'ALERTS{{alertname!~"{"|".join(BUSY)}"}}'
    fired = [alert for alert in prometheus.fired if alert.name not in BUSY]
    return [*prometheus.query(quick), *fired]


def runbook_queries() -> list[str]:
    text = (SHIPPED.parents[1] / "docs/runbook.md").read_text()
    blocks = re.findall(r"(?ms)^ *```promql\n(.*?)^ *```", text)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def problem(prometheus: Watching, query: str) -> str:
    try:
        prometheus.query(query)
    except AssertionError as error:
        return str(error)
    return ""


# --- what was seen ----------------------------------------------------------------------------


@pytest.mark.parametrize(("alert", "instance"), FAULTS, ids=[alert for alert, _ in FAULTS])
def test_the_fault_is_alerted(seen: Seen, alert: str, instance: str) -> None:
    assert Alert(alert, instance) in seen.fired


def test_nothing_is_alerted_while_nothing_is_wrong(seen: Seen) -> None:
    assert seen.calm == []


def test_nothing_is_alerted_that_did_not_happen(seen: Seen) -> None:
    expected = {Alert(*fault) for fault in FAULTS}
    consequences = {
        Alert(name, instance) for instance, names in CONSEQUENCES.items() for name in names
    }
    unexpected = seen.fired.keys() - expected - consequences
    assert {alert for alert in unexpected if alert.name not in BUSY} == set()


def test_what_people_read_is_whole(seen: Seen) -> None:
    for alert, texts in seen.fired.items():
        for text in texts.values():
            assert text
            assert not re.search(r"\{\{|<no value>|<error|  |\n", text), (alert, text)
        assert texts["summary"].startswith(alert.instance), alert


def test_the_queries_of_the_runbook_can_be_asked(seen: Seen) -> None:
    assert {query: wrong for query, wrong in seen.queries.items() if wrong} == {}
    assert len(seen.queries) > 10


def test_every_alert_has_its_fault() -> None:
    rules = yaml.safe_load((SHIPPED / "rules/alerts.yml").read_text())
    named = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    assert sorted(alert for alert, _ in FAULTS) == sorted(named)


def test_rules_in_a_hurry_are_the_shipped_ones_but_for_their_durations() -> None:
    for path in SHIPPED.glob("rules/*.yml"):
        shipped = path.read_text()
        assert hurried(shipped) != shipped
        assert without_durations(hurried(shipped)) == without_durations(shipped)
