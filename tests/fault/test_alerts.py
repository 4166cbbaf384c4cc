"""Every alert fires: a real Prometheus watches real daemons, to which its fault happens.

Four daemons go through a story each, all at the same time, and one Prometheus sees all of
it. The stories come first, in a fixture; the tests then look at which alerts have fired.
"""

from __future__ import annotations

import re
import secrets
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from daemon import OTHERS, RECORDS, SECONDS, Daemon, copy_of, until
from prometheus_server import SHIPPED, Alert, Prometheus, hurried, without_durations
from test_audit_daemon import PROGRAM
from test_module import check_all

from signer.client import SignerClientError
from signer.config import load_config
from signer.dev import pki, softhsm
from signer.hsm.admin import open_admin
from signer.keys.audit import audit_key
from signer.keys.registry import Registry

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from officers import Office  # noqa: E402 - found by the line above

DAY = 86400
LATE = ("DEADLINE_TOO_SHORT", "DEADLINE_EXCEEDED")
ROOM = 100 << 30
"""Free bytes of every disk, until a story says otherwise."""

DISK, HSM, PIN, KEYS, SERVICE = "disk", "hsm", "pin", "keys", ""
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
    ("SignerWorkersMissing", PIN),
    ("SignerRestarting", PIN),
    ("SignerClockDoubtful", PIN),
    ("SignerClockSkewed", PIN),
    ("SignerDown", PIN),
    ("SignerCertificateEnding", KEYS),
    ("SignerCertificateEndingSoon", KEYS),
    ("SignerKeyEnding", KEYS),
    ("SignerKeyEndingSoon", KEYS),
    ("SignerOperationsPending", KEYS),
    ("SignerQuotaStorm", KEYS),
    ("SignerMemoryHigh", KEYS),
    ("SignerRegistryNotFollowed", KEYS),
    ("SignerErrorBudgetBurnFast", SERVICE),
    ("SignerErrorBudgetBurnSlow", SERVICE),
    ("SignerMissing", SERVICE),
)
"""Every alert, and to which daemon its fault happens."""
CONSEQUENCES = {
    HSM: ("SignerNotReady", "SignerTokenDown", "SignerWorkersMissing"),
    PIN: ("SignerNotReady", "SignerWorkerRestarts", "SignerCheckpointsFailing"),
}
"""What else is told of a daemon for the same faults."""
BUSY = ("SignerDown", "SignerAuditSlow")
"""What is true of any daemon while the machine of the tests has no time for it."""


class Machine(NamedTuple):
    """A daemon, and the orders for its machine and for its PKCS#11 module."""

    daemon: Daemon
    orders: Path

    def order(self, name: str, text: object = "") -> None:
        path = self.orders / f"{name}.new"
        path.write_text(str(text))
        path.rename(self.orders / name)

    def cancel(self, name: str) -> None:
        (self.orders / name).unlink()

    def kill_workers(self) -> None:
        for worker in self.daemon.workers():
            worker.kill()

    def sign(self, count: int = 1, key: str = RECORDS) -> str:
        """Signs; returns why the call or an item failed, or ok."""
        try:
            ends = self.daemon.sign(count, key)
        except SignerClientError as error:
            return error.reason
        return next((end for end in ends if end != "ok"), "ok")

    def sign_until(self, true: Callable[[], object], what: str, key: str = RECORDS) -> None:
        """Signs again and again, however that ends, until something is so."""
        end = time.monotonic() + 4 * SECONDS
        while not true():
            assert time.monotonic() < end, f"not within {4 * SECONDS:g} s: {what}"
            self.sign(10, key)
            time.sleep(0.2)  # a call costs both sides more than a look


# --- stories ----------------------------------------------------------------------------------


def disk_story(machine: Machine, prometheus: Prometheus) -> None:
    """The disk of the audit log fills up, hangs, and fails."""
    fired = prometheus.fired
    rooms = iter(range(ROOM, 0, -(1 << 30)))

    def shrinks() -> bool:
        machine.order("free", next(rooms))
        return Alert("SignerDiskFilling", DISK) in fired

    machine.sign_until(shrinks, "the disk is seen to fill")
    low = int(machine.daemon.metric("signer_disk_low_bytes"))
    machine.order("free", 3 * low)
    assert machine.sign() == "ok"
    prometheus.until(Alert("SignerDiskLow", DISK))

    machine.order("slow")
    with ThreadPoolExecutor(4) as callers:
        calls = [callers.submit(machine.sign) for _ in range(4)]
        stalled = Alert("SignerAuditStalled", DISK), Alert("SignerCallsNearLimit", DISK)
        try:
            prometheus.until(*stalled)
        finally:
            machine.cancel("slow")
        assert {call.result() for call in calls} <= {"ok", *LATE}
    prometheus.until(Alert("SignerAuditSlow", DISK))

    machine.order("failed")
    burnt = {Alert("SignerErrorBudgetBurnFast", ""), Alert("SignerErrorBudgetBurnSlow", "")}
    machine.sign_until(lambda: burnt <= fired.keys(), "the budget burns")
    prometheus.until(Alert("SignerAuditStopped", DISK), Alert("SignerNotReady", DISK))


def hsm_story(machine: Machine, prometheus: Prometheus) -> None:
    """The audit key is gone, then the module errs, hangs, and fails."""
    config = load_config(machine.daemon.folder / "signer.yaml")
    with Registry.open(config.registry) as registry:
        key = audit_key(registry, time.time())
    with open_admin(config.tokens[0], config.state) as admin:
        admin.destroy(key.cka_id, key.name)
    machine.kill_workers()  # they have copies of it
    fired = prometheus.fired
    unsigned = {Alert("SignerCheckpointOld", HSM), Alert("SignerCheckpointsFailing", HSM)}
    machine.sign_until(lambda: unsigned <= fired.keys(), "the log is not signed")

    machine.order("sign.once", "wrong")
    until(lambda: machine.sign(key=OTHERS) == "KEY_VERSION_NOT_ACTIVE", "the key is stopped")

    machine.order("sign", "hang")
    with ThreadPoolExecutor(8) as callers:
        calls = [callers.submit(machine.sign) for _ in range(8)]
        try:
            prometheus.until(Alert("SignerQueueOld", HSM))
        finally:
            machine.cancel("sign")
            machine.kill_workers()  # those that hang do so for ever
        assert {call.result() for call in calls} <= {"ok", *LATE}
    machine.order("sign", "fail 0x30")  # CKR_DEVICE_ERROR
    restarts = Alert("SignerWorkerRestarts", HSM)
    machine.sign_until(lambda: restarts in fired, "workers die")


def pin_story(machine: Machine, prometheus: Prometheus) -> None:
    """The PIN is changed, workers end, and an operator restarts the daemon in vain."""
    daemon = machine.daemon
    (daemon.folder / "pin").write_text(secrets.token_hex(16))
    machine.kill_workers()
    alerts = ("LoginFailed", "PinLatched", "TokenDown", "WorkersMissing")
    prometheus.until(*(Alert(f"Signer{name}", PIN) for name in alerts))

    def started() -> float | None:
        return prometheus.value(f'process_start_time_seconds{{instance="{PIN}"}}')

    for _ in range(3):
        before = started()
        assert daemon.stop() == 0
        daemon.start(ready=False)
        until(lambda before=before: started() not in (before, None), "the restart is seen")
    machine.order("clock", -100)
    alerts = ("Restarting", "ClockDoubtful", "ClockSkewed")
    prometheus.until(*(Alert(f"Signer{name}", PIN) for name in alerts))
    daemon.stop(signal.SIGKILL)
    prometheus.until(Alert("SignerDown", PIN))


def keys_story(machine: Machine, prometheus: Prometheus) -> None:
    """What officers and operators have forgotten falls due, and the registry cannot be read."""
    daemon = machine.daemon
    renew(daemon, server=20, client_ca=3)
    now = time.time()
    change(daemon, "01-001", "records-rsa", f"sign_until = {now + 20 * DAY}")
    change(daemon, "moh", "digest", f"sign_until = {now + 3 * DAY}")
    Office(daemon.dev).propose("new-version", key=RECORDS)
    machine.order("memory", 600 << 20)
    due = ("CertificateEnding", "CertificateEndingSoon", "KeyEnding", "KeyEndingSoon")
    alerts = {Alert(f"Signer{name}", KEYS) for name in (*due, "MemoryHigh", "QuotaStorm")}
    machine.sign_until(lambda: alerts <= prometheus.fired.keys(), f"{alerts} fire", OTHERS)
    prometheus.until(Alert("SignerOperationsPending", KEYS))
    change(daemon, "01-001", "records", "state = 'ARCHIVED'")
    prometheus.until(Alert("SignerRegistryNotFollowed", KEYS))


def renew(daemon: Daemon, *, server: int, client_ca: int) -> None:
    """Gives the server a certificate of so many days, and the clients' CA a companion."""
    folder = daemon.folder / "pki"
    old = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    names = list(old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    issuer = pki.authority(folder, "ca", "")

    def issue(days: int) -> bytes:
        usage = ExtendedKeyUsageOID.SERVER_AUTH
        made = issuer.issue(old.public_key(), old.subject, usage, names, days)  # type: ignore[arg-type] # it is one of ours
        return made.public_bytes(Encoding.PEM)

    (folder / "server.pem").write_bytes(issue(server))
    with (folder / "client-ca.pem").open("ab") as file:
        file.write(issue(client_ca))
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)


def change(daemon: Daemon, facility: str, key: str, assignment: str) -> None:
    """Changes a version in the registry, as another program would: with a new revision."""
    where = f"key_id = (SELECT id FROM keys WHERE facility = '{facility}' AND key = '{key}')"
    with closing(sqlite3.connect(daemon.folder / "registry.sqlite")) as registry, registry:
        registry.execute("UPDATE revision SET value = value + 1")
        revision = "revision = (SELECT value FROM revision)"
        done = registry.execute(f"UPDATE key_versions SET {assignment}, {revision} WHERE {where}")  # noqa: S608 - our own text
        assert done.rowcount == 1


STORIES = {DISK: disk_story, HSM: hsm_story, PIN: pin_story, KEYS: keys_story}


# --- the stage --------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    """Ports that were free together."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def set_up(provisioned: Path, folder: Path, shim_module: Path) -> dict[str, Machine]:
    """Daemons with ports of their own, on machines that obey; none is started."""
    ports = iter(free_ports(2 * len(STORIES)))
    machines = {}
    for name in STORIES:
        daemon = copy_of(provisioned, folder / name)
        own = {
            daemon.dev[which].rpartition(":")[2]: next(ports) for which in ("address", "metrics")
        }
        for path in (daemon.folder / "dev.json", daemon.folder / "signer.yaml"):
            text = path.read_text()
            for port, new in own.items():
                text = re.sub(rf"(?<=127\.0\.0\.1:){port}\b", str(new), text)
            path.write_text(text)
        machine = Machine(daemon, folder / f"{name}-orders")
        machine.orders.mkdir()
        machine.order("free", ROOM)
        machine.order("quick")  # the disk of a busy machine is slow of itself
        daemon.configure(token={"workers": 1})
        daemon.program = [str(PROGRAM), str(machine.orders), "0.25"]
        machines[name] = machine
    machines[DISK].daemon.configure(limits={"calls": 4, "calls_per_client": 4})
    machines[HSM].daemon.configure(
        token={
            "module": str(shim_module),
            "hang_seconds": 600.0,
            "environment": {
                "SHIM_MODULE": str(softhsm.find_module()),
                "SHIM_FAULTS": str(machines[HSM].orders),
            },
        }
    )
    policy = machines[KEYS].daemon.folder / "policy" / "policy.yaml"
    edited = yaml.safe_load(policy.read_text())
    edited["facilities"]["01-002"]["quotas"] = ["100 per day"]
    policy.write_text(yaml.safe_dump(edited))
    for machine in machines.values():
        check_all(machine.daemon)  # puts the policy in force
    return machines


class Seen(NamedTuple):
    """What Prometheus saw: before anything went wrong, and in the end."""

    calm: list[object]
    fired: dict[Alert, dict[str, str]]
    queries: dict[str, str]
    """What was wrong with the runbook's queries; empty for those that work."""


@pytest.fixture(scope="module")
def seen(
    provisioned: Path, shim_module: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("alerts")
    machines = set_up(provisioned, folder, shim_module)
    daemons = {name: machine.daemon for name, machine in machines.items()}
    prometheus = None
    with ThreadPoolExecutor(len(machines)) as threads:
        try:
            list(threads.map(Daemon.start, daemons.values()))
            targets = {
                name: each.dev["metrics"].rpartition("/")[2] for name, each in daemons.items()
            }
            prometheus = Prometheus(folder / "prometheus", targets)
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
                prometheus.stop()
            codes = [each.stop() for each in daemons.values() if each.running]
    assert set(codes) == {0}


def watch_calm(machines: dict[str, Machine], prometheus: Prometheus) -> list[object]:
    """Has everything go well for a while; returns what was alerted meanwhile."""
    looks = "min(count_over_time(up[30s])) > 3"
    measured = "count_over_time(job:signer_sli_bad:ratio5m[1m]) > 3"

    def long_enough() -> bool:
        assert {machine.sign(5) for machine in machines.values()} == {"ok"}
        return len(prometheus.query(measured)) == 2 and bool(prometheus.query(looks))

    until(long_enough, "all is scraped and measured", 120)
    quick = f'ALERTS{{alertname!~"{"|".join(BUSY)}"}}'
    fired = [alert for alert in prometheus.fired if alert.name not in BUSY]
    return [*prometheus.query(quick), *fired]


def runbook_queries() -> list[str]:
    text = (SHIPPED.parents[1] / "docs/runbook.md").read_text()
    blocks = re.findall(r"(?ms)^ *```promql\n(.*?)^ *```", text)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def problem(prometheus: Prometheus, query: str) -> str:
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
    for alert, annotations in seen.fired.items():
        for text in annotations.values():
            assert text
            assert not re.search(r"\{\{|<no value>|<error|  |\n", text), (alert, text)
        assert annotations["summary"].startswith(alert.instance), alert


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
