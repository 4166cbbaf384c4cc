"""``signer serve`` as a process of its own, its workers, and its log as an auditor sees it."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psutil
import yaml
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from signer.client import SignerClient
from signer.daemon.status import STARTING
from signer.hsm.latch import start_lock
from signer.tools.dev.appliance import connect
from tests.commands import signer
from tests.fork_server import fork_server
from tests.ports import free_ports

SECONDS = 120.0
RECORDS = "facilities/01-001/keys/records"


def until(
    true: Callable[[], object], what: str = "what the test waits for", seconds: float = SECONDS
) -> None:
    """Waits for something to become true; fails with ``what`` if it does not."""
    end, pause = time.monotonic() + seconds, 0.02
    while not true():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(pause)
        pause = min(1.3 * pause, 0.1)  # asking often is work for the daemon, too


def get(url: str) -> tuple[int, str]:
    """Returns the status and the body of a page; raises OSError."""
    address = urlsplit(url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=10)
    try:
        connection.request("GET", address.path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def kill_workers(folder: Path, *workers: psutil.Process) -> None:
    """Kills workers of an appliance, none of them in its login.

    At each login SoftHSM empties a file of the token and writes it anew: the token of a process
    that is killed meanwhile can never be opened again.
    """
    with start_lock(folder / "state", "signer-dev"):
        for worker in workers:
            with suppress(psutil.NoSuchProcess):  # it may just have left by itself
                worker.kill()


class Exit(NamedTuple):
    """How a program ended."""

    code: int
    errors: str


class Daemon:
    """``signer serve`` with a configuration. ``stop`` leaves no process behind."""

    def __init__(self, config: Path) -> None:
        self.config, self.folder = config, config.parent
        self.log = config.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None
        self.program = ["-m", "signer", "serve", "--config"]
        self._seen: set[psutil.Process] = set()

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration as it is written."""
        settings: dict[str, Any] = yaml.safe_load(self.config.read_text())
        return settings

    @property
    def dev(self) -> dict[str, Any]:
        described: dict[str, Any] = json.loads((self.folder / "dev.json").read_text())
        return described

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    # --- configuration ---------------------------------------------------------------------

    def configure(
        self, token: Mapping[str, Any] | None = None, limits: Mapping[str, Any] | None = None
    ) -> None:
        """Changes settings of the token (None takes one out), and limits."""
        config = self.settings
        [settings] = config["tokens"]
        for name, value in (token or {}).items():
            if name == "environment":
                settings[name].update(value)
            elif value is None:
                settings.pop(name)
            else:
                settings[name] = value
        config.setdefault("limits", {}).update(limits or {})
        self.config.write_text(yaml.safe_dump(config, sort_keys=False))

    # --- life ------------------------------------------------------------------------------

    def launch(self) -> None:
        """Starts it; does not wait."""
        with self.log.open("ab") as log:
            command = [*self.program, str(self.config)]
            self.process = fork_server().start(command, stdout=log, stderr=log)

    def start(self, *, ready: bool = True) -> None:
        """Starts it and waits until it serves, or (not ``ready``) until it answers."""
        self.launch()
        until(lambda: self._answers(ready), f"the daemon answers; its log:\n{self.log}")

    def _answers(self, ready: bool) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the daemon ended:\n{self.log.read_text()[-9000:]}"
        try:
            status, text = self.get("/readyz")
        except OSError:
            return False
        return status == 200 or (not ready and STARTING not in text)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends it; no worker outlives it. Returns its exit code."""
        assert self.process is not None
        self.workers()
        self.process.send_signal(number)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        gone, alive = psutil.wait_procs(self._seen, timeout=10)
        for stray in alive:
            stray.kill()
        assert not alive, f"{len(alive)} of {len(gone) + len(alive)} workers outlive the daemon"
        return code

    def refused(self) -> Exit:
        """Starts it and expects that it does not get as far as listening."""
        ended = self.run("serve")
        assert '"started"' not in ended.errors, "it listened"
        return ended

    def run(self, *arguments: str) -> Exit:
        """Runs another command of the program on the same configuration."""
        done = signer(*arguments, "--config", self.config)
        return Exit(done.code, done.err)

    def verified(self, *options: str) -> dict[str, Any]:
        """Returns what ``signer audit verify`` reports once the whole log is signed."""
        audit = self.settings["audit"]
        return verified(self.folder / audit["directory"], audit["origin"], *options)

    # --- looks -----------------------------------------------------------------------------

    def workers(self) -> list[psutil.Process]:
        """The workers of the moment."""
        assert self.process is not None
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if "signer.hsm.worker" in child.cmdline():
                    found.append(child)
            except psutil.NoSuchProcess:
                continue
        self._seen.update(found)
        return found

    def get(self, path: str) -> tuple[int, str]:
        """Returns the status and the body of a page of the metrics port."""
        return get(f"http://{self.settings['metrics']}{path}")

    def reason(self) -> str:
        """Why it does not serve; empty where it does."""
        status, text = self.get("/readyz")
        return "" if status == 200 else text

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == name and all(
                f'{label}="{wanted}"' in sample for label, wanted in labels.items()
            ):
                total += float(value)
        return total

    def health(self) -> str:
        with self.client() as client:
            return client.health(timeout=5)

    def client(self, name: str = "issuer") -> SignerClient:
        return connect(self.dev, name)

    def public_key(self, key: str = RECORDS) -> Any:
        [path] = [each["public_key"] for each in self.dev["keys"] if each["name"] == key]
        return load_pem_public_key(Path(path).read_bytes())

    def sign(self, count: int = 3, key: str = RECORDS, timeout: float = SECONDS) -> Counter[str]:
        """Signs so many messages; how the items ended, every signature verified."""
        messages = [os.urandom(20) for _ in range(count)]
        with self.client() as client:
            results = client.sign_batch(key, "MESSAGE", messages, timeout=timeout)
        public = self.public_key(key)
        ends: Counter[str] = Counter()
        for message, result in zip(messages, results, strict=True):
            if result.error is not None:
                assert not result.signature
                ends[result.error.reason] += 1
            else:
                ends["ok" if correct(public, message, result.signature) else "wrong"] += 1
        return ends


def correct(public: ec.EllipticCurvePublicKey, message: bytes, signature: bytes) -> bool:
    """Whether r‖s is a signature of the message: by cryptography, not by our code."""
    r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
    digest = hashlib.sha256(message).digest()
    try:
        public.verify(encode_dss_signature(r, s), digest, ec.ECDSA(Prehashed(hashes.SHA256())))
    except InvalidSignature:
        return False
    return len(signature) == 64


def beside(made: Any) -> Path:
    """The configuration of a second appliance on the registry and token of one that is made.

    It has all else of its own; ``signer init --join`` begins its log.
    """
    config = yaml.safe_load((made.dir / "signer.yaml").read_text())
    port, metrics = free_ports()
    shutil.copytree(made.dir / "policy", made.dir / "policy-2")
    config |= {
        "listen": f"127.0.0.1:{port}",
        "metrics": f"127.0.0.1:{metrics}",
        "policy": "policy-2",
        "state": "state-2",
    }
    config["audit"] |= {"directory": "audit-2", "origin": "second/audit"}
    (made.dir / "state-2").mkdir(mode=0o700)
    path = Path(made.dir / "second.yaml")
    path.write_text(yaml.safe_dump(config))
    return path


def verified(audit: Path, origin: str, *options: str, whole: bool = True) -> dict[str, Any]:
    """The report on a log; where it is to be ``whole``, once its newest records are signed."""
    command = ["audit", "verify", "--json", "--dir", audit, "--key", audit / "audit.pub.pem"]
    command += ["--origin", origin, *options]
    report: dict[str, Any] = {}

    def reported() -> bool:
        report.update(json.loads(signer(*command).out))
        return bool(report["whole"]) or not whole

    try:
        until(reported, "the log is whole and signed")
    except AssertionError as error:
        raise AssertionError(f"{error}: {report}") from None
    return report
