"""What happens to four daemons while Prometheus watches them: each has a story of its own.

Every step of a story is a real fault. A story goes on when Prometheus has seen what it must
see first: a disk that has failed hangs no more.
"""

import secrets
import signal
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from signer.algorithms import Algorithm
from signer.client._errors import SignerClientError
from signer.config.models import load_config
from signer.daemon.audit_log import audit_key
from signer.hsm.front.admin import open_admin
from signer.keys.registry import Registry
from signer.tools.dev import pki
from tests.appliances import Appliance
from tests.daemon import RECORDS, SECONDS, Daemon, kill_workers, until
from tests.fault.daemon import OTHERS, check_all
from tests.fault.shim import Action, Shim
from tests.fault.watching import Alert, Watching
from tests.integration.officers import Office

PROGRAM = Path(__file__).with_name("serve_with_faults.py")
DAY = 86400
FEW = "facilities/strict/keys/records"
"""A key whose versions may sign five times."""
LATE = ("DEADLINE_TOO_SHORT", "DEADLINE_EXCEEDED")
ROOM = 100 << 30
"""Free bytes of every disk, until a story says otherwise."""

DISK, HSM, PIN, KEYS = "disk", "hsm", "pin", "keys"


class Machine(NamedTuple):
    """A daemon, the orders for its machine, and the rules for its PKCS#11 module."""

    daemon: Daemon
    orders: Path
    shim: Shim

    def order(self, name: str, text: object = "") -> None:
        path = self.orders / f"{name}.new"
        path.write_text(str(text))
        path.rename(self.orders / name)

    def cancel(self, name: str) -> None:
        (self.orders / name).unlink()

    def kill_workers(self) -> None:
        kill_workers(self.daemon.folder, *self.daemon.workers())

    def sign(self, key: str = RECORDS) -> str:
        """Signs one item; returns why the call or the item failed, or ok."""
        try:
            [end] = self.daemon.sign(1, key)
        except SignerClientError as error:
            return error.reason
        return end

    def sign_until(self, true: Callable[[], object], what: str, key: str = RECORDS) -> None:
        """Signs again and again, however that ends, until something is so."""
        end = time.monotonic() + SECONDS
        while not true():
            assert time.monotonic() < end, f"not within {SECONDS:g} s: {what}"
            self.sign(key)
            time.sleep(0.2)  # a call costs both sides more than a look


# --- stories ----------------------------------------------------------------------------------


def disk_story(machine: Machine, prometheus: Watching) -> None:
    """The disk of the audit log fills up, hangs, and fails."""
    fired = prometheus.fired
    rooms = iter(range(ROOM, 0, -(1 << 29)))

    def shrinks() -> bool:
        machine.order("free", next(rooms))
        return Alert("SignerDiskFilling", DISK) in fired

    machine.sign_until(shrinks, "the disk is seen to fill")
    low = int(machine.daemon.metric("signer_disk_low_bytes"))
    machine.order("free", 3 * low)
    assert machine.sign() == "ok"
    prometheus.until(Alert("SignerDiskLow", DISK))

    machine.order("slow")
    with ThreadPoolExecutor(3) as callers:
        calls = [callers.submit(machine.sign) for _ in range(3)]
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


def hsm_story(machine: Machine, prometheus: Watching) -> None:
    """The audit key is gone, then the module errs, hangs, and fails."""
    config = load_config(machine.daemon.folder / "signer.yaml")
    with Registry.open(config.registry) as registry:
        key = audit_key(registry, time.time())
    with open_admin(config.tokens[0], config.state) as admin:
        admin.destroy(key.cka_id, key.name)
    machine.kill_workers()  # they have copies of it
    fired = prometheus.fired
    unsigned = {Alert("SignerCheckpointOld", HSM), Alert("SignerCheckpointsFailing", HSM)}
    machine.sign()
    prometheus.until(*unsigned)  # though nothing more is recorded

    machine.shim.on("C_Sign", times=1, action=Action.FLIP)
    until(lambda: machine.sign(OTHERS) == "KEY_VERSION_NOT_ACTIVE", "the key is stopped")

    machine.shim.on("C_Sign", action=Action.HANG)
    with ThreadPoolExecutor(8) as callers:
        calls = []
        for _ in range(8):  # what comes together goes to one worker together
            calls.append(callers.submit(machine.sign))
            time.sleep(0.2)
        try:
            prometheus.until(Alert("SignerQueueOld", HSM))
        finally:
            machine.shim.clear()  # those that hang go on
        assert {call.result() for call in calls} <= {"ok", *LATE}
    machine.shim.on("C_Sign", code=0x30)  # CKR_DEVICE_ERROR
    restarts = Alert("SignerWorkerRestarts", HSM)
    machine.sign_until(lambda: restarts in fired, "workers die")


def pin_story(machine: Machine, prometheus: Watching) -> None:
    """The PIN is changed, workers end, and an operator restarts the daemon in vain."""
    daemon = machine.daemon
    (daemon.folder / "pin").write_text(secrets.token_hex(16))
    machine.kill_workers()
    alerts = ("LoginFailed", "PinLatched", "TokenDown", "KeysAway", "WorkersMissing")
    prometheus.until(*(Alert(f"Signer{name}", PIN) for name in alerts))

    def started() -> float | None:
        return prometheus.value(f'process_start_time_seconds{{instance="{PIN}"}}')

    for _ in range(3):
        before = started()
        assert daemon.stop() == 0
        daemon.start(ready=False)
        until(lambda: started() not in (before, None), "the restart is seen")
    machine.order("clock", -100)
    clock_alerts = ("Restarting", "ClockDoubtful", "ClockSkewed")
    prometheus.until(*(Alert(f"Signer{name}", PIN) for name in clock_alerts))
    daemon.stop(signal.SIGKILL)
    prometheus.until(Alert("SignerDown", PIN))


def keys_story(machine: Machine, prometheus: Watching) -> None:
    """What officers and operators have forgotten falls due, and the registry cannot be read."""
    daemon = machine.daemon
    renew(daemon, server=20, client_ca=3)
    now = time.time()
    change(daemon, "01-001", "records-rsa", f"sign_until = {now + 20 * DAY}")
    change(daemon, "moh", "digest", f"sign_until = {now + 3 * DAY}")
    config = load_config(daemon.folder / "signer.yaml")
    with open_admin(config.tokens[0], config.state) as admin:
        admin.generate(Algorithm.ES256, 0, b"nobody's", "nobody's")
    machine.order("compare", 1)
    appoint(daemon, "c", timedelta(days=20))
    prometheus.until(Alert("SignerOfficerCertificateEnding", KEYS))
    appoint(daemon, "d", timedelta(days=3))
    appoint(daemon, "e", timedelta(seconds=10))
    Office(daemon.dev).propose("new-version", key=RECORDS)
    machine.order("memory", 600 << 20)
    due = ("CertificateEnding", "CertificateEndingSoon", "KeyEnding", "KeyEndingSoon")
    officers = ("OfficerCertificateEndingSoon", "OfficerCertificateEnded")
    alerts = {
        Alert(f"Signer{name}", KEYS) for name in (*due, *officers, "MemoryHigh", "QuotaStorm")
    }
    machine.sign_until(lambda: alerts <= prometheus.fired.keys(), f"{alerts} fire", OTHERS)
    used = {Alert(f"SignerKeyLifetime{name}", KEYS) for name in ("NearlyUsed", "Used")}
    machine.sign_until(lambda: used <= prometheus.fired.keys(), f"{used} fire", FEW)
    prometheus.until(Alert("SignerOperationsPending", KEYS), Alert("SignerTokenDiffers", KEYS))
    change(daemon, "moh", "digest", f"sign_until = {time.time() - DAY}")
    prometheus.until(Alert("SignerKeysEnded", KEYS))
    machine.order("large")
    machine.order("deaf")
    missing, dropped = "SignerAuditSnapshotMissing", "SignerLogLinesDropped"
    observers = {Alert(missing, KEYS), Alert(dropped, KEYS)}
    until(  # batches fill the open file of the log; what watches hinders none of them
        lambda: daemon.sign(400) == {"ok": 400} and observers <= prometheus.fired.keys(),
        f"{observers} fire",
    )
    machine.cancel("deaf")
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


def appoint(daemon: Daemon, name: str, valid_for: timedelta) -> None:
    """Two officers appoint another one, whose certificate ends soon."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name.from_rfc4514_string(f"CN=officer {name}")
    uri = x509.UniformResourceIdentifier(f"spiffe://dev.signer.example/officer-{name}")
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 1, now, now + valid_for)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .sign(key, hashes.SHA256())
    )
    Office(daemon.dev).do("officers", add=[certificate.public_bytes(Encoding.PEM).decode()])


def change(daemon: Daemon, facility: str, key: str, assignment: str) -> None:
    """Changes a version in the registry, as another program would: with a new revision."""
    with closing(sqlite3.connect(daemon.folder / "registry.sqlite")) as registry, registry:
        registry.execute("UPDATE revision SET value = value + 1")
        done = registry.execute(
            f"UPDATE key_versions SET {assignment}, revision = (SELECT value FROM revision)"
            " WHERE key_id = (SELECT id FROM keys WHERE facility = ? AND key = ?)",
            (facility, key),
        )
        assert done.rowcount == 1


STORIES = {DISK: disk_story, HSM: hsm_story, PIN: pin_story, KEYS: keys_story}


# --- the stage --------------------------------------------------------------------------------


def set_up(folder: Path, shim_module: Path) -> dict[str, Machine]:
    """Daemons by their story, on machines that obey; none is started."""
    machines = {}
    for name in STORIES:
        appliance = Appliance(folder / name)
        appliance.init()
        shim = Shim(folder / f"{name}-shim")
        machine = Machine(Daemon(appliance.dir / "signer.yaml"), folder / f"{name}-orders", shim)
        machine.orders.mkdir()
        machine.order("free", ROOM)
        machine.order("quick")  # the disk of a busy machine is slow of itself
        machine.daemon.program = [str(PROGRAM), str(machine.orders), "0.25"]
        machine.daemon.configure(token={"workers": 1})
        machines[name] = machine
    settings = machines[KEYS].daemon.settings
    settings["audit"]["segment_bytes"] = 1 << 20
    machines[KEYS].daemon.config.write_text(yaml.safe_dump(settings))
    machines[DISK].daemon.configure(limits={"calls": 4, "calls_per_client": 4})
    hsm = machines[HSM]
    environment = hsm.shim.environment
    hsm.daemon.configure(
        token={"module": str(shim_module), "hang_seconds": 600.0, "environment": environment}
    )
    policy = machines[KEYS].daemon.folder / "policy" / "policy.yaml"
    edited = yaml.safe_load(policy.read_text())
    edited["facilities"]["01-002"]["quotas"] = ["10 per day"]
    edited["facilities"]["strict"]["lifetime_signatures"] = 5
    policy.write_text(yaml.safe_dump(edited))
    for machine in machines.values():
        check_all(machine.daemon)  # and puts the policy in force
    return machines
