"""The real daemon, its workers and its callers, as faults befall them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import psutil
import yaml
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from signer.client import SignerClient, SignerClientError
from signer.config.loader import load_config
from signer.config.policy_documents import read_policy
from signer.keys.registry import Registry
from signer.tools.dev.appliance import connect

SECONDS = 120.0
RECORDS = "facilities/01-001/keys/records"
OTHERS = "facilities/01-002/keys/records"
RSA = "facilities/01-001/keys/records-rsa"


def until(true: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    """Waits for something to become true; fails with ``what`` where it does not."""
    end, pause = time.monotonic() + seconds, 0.02
    while not true():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(pause)
        pause = min(1.3 * pause, 0.1)  # asking often is work for the daemon, too


class Exit(NamedTuple):
    """How a program ended."""

    code: int
    errors: str


class Daemon:
    """``signer serve`` on a provisioned folder. ``stop`` leaves no process behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder.with_name(f"{folder.name}.log")
        self.process: subprocess.Popen[bytes] | None = None
        self.program = ["-m", "signer", "serve", "--config"]
        self._seen: set[psutil.Process] = set()

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
        path = self.folder / "signer.yaml"
        config = yaml.safe_load(path.read_text())
        [settings] = config["tokens"]
        for name, value in (token or {}).items():
            if name == "environment":
                settings[name].update(value)
            elif value is None:
                settings.pop(name)
            else:
                settings[name] = value
        config.setdefault("limits", {}).update(limits or {})
        path.write_text(yaml.safe_dump(config, sort_keys=False))

    # --- life ------------------------------------------------------------------------------

    def launch(self) -> None:
        """Starts it; does not wait."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, self._config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def start(self, *, ready: bool = True) -> None:
        """Starts it and waits until it serves, or (not ``ready``) until it answers."""
        self.launch()
        until(lambda: self._answers(ready), f"the daemon answers; its log:\n{self.log}")

    def _answers(self, ready: bool) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the daemon ended:\n{self.log.read_text()}"
        try:
            status, _ = self.get("/readyz")
            with self.client() as client:
                health = client.health(timeout=1)
        except (OSError, SignerClientError):
            return False
        return (status, health) == (200, "SERVING") if ready else True

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
        done = subprocess.run(
            [sys.executable, "-m", "signer", "serve", "--config", self._config],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            text=True,
            timeout=SECONDS,
        )
        assert '"started"' not in done.stderr, "it listened"
        return Exit(done.returncode, done.stderr)

    def run(self, *arguments: str) -> Exit:
        """Another command of the program, on the same configuration."""
        done = subprocess.run(
            [sys.executable, "-m", "signer", *arguments, "--config", self._config],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            text=True,
            timeout=SECONDS,
        )
        return Exit(done.returncode, done.stderr)

    @property
    def _config(self) -> str:
        return str(self.folder / "signer.yaml")

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
        """A page of the metrics port."""
        address = urlsplit(self.dev["metrics"])
        connection = HTTPConnection(address.hostname or "", address.port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

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


def check_all(daemon: Daemon) -> None:
    """Has every signature checked, as is the default outside of development."""
    path = daemon.folder / "policy" / "policy.yaml"
    path.write_text(path.read_text().replace("check_every: 64", "check_every: 1"))
    config = load_config(daemon.folder / "signer.yaml")
    _, text = read_policy(config.policy)
    with Registry.open(config.registry) as registry, registry.writing() as write:
        write.put_policy(text)


def correct(public: ec.EllipticCurvePublicKey, message: bytes, signature: bytes) -> bool:
    """Whether r‖s is a signature of the message: by cryptography, not by our code."""
    r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
    digest = hashlib.sha256(message).digest()
    try:
        public.verify(encode_dss_signature(r, s), digest, ec.ECDSA(Prehashed(hashes.SHA256())))
    except InvalidSignature:
        return False
    return len(signature) == 64


class Load:
    """Callers that send batch after batch inside a ``with`` block; every signature is verified."""

    def __init__(
        self, daemon: Daemon, *, callers: int = 3, items: int = 150, key: str = RECORDS
    ) -> None:
        self.ends: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.without_hint = 0
        self._daemon, self._items, self._key = daemon, items, key
        self._public = daemon.public_key(key)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(callers)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.more()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * SECONDS)
        assert not any(thread.is_alive() for thread in self._threads), "a call hangs"

    def more(self, calls: int = 5) -> None:
        """Waits until so many more calls have succeeded as calls."""
        wanted = self.calls["ok"] + calls
        until(lambda: self.calls["ok"] >= wanted, "calls are answered under load")

    def _call(self) -> None:
        with self._daemon.client() as client:
            while not self._over.is_set():
                messages = [os.urandom(20) for _ in range(self._items)]
                try:
                    results = client.sign_batch(self._key, "MESSAGE", messages, timeout=SECONDS)
                except SignerClientError as error:
                    with self._lock:
                        self.calls[error.reason] += 1
                    continue
                ends = Counter(result.error.reason if result.error else "ok" for result in results)
                good = [
                    (message, result.signature)
                    for message, result in zip(messages, results, strict=True)
                    if result.error is None
                ]
                wrong = sum(not correct(self._public, *each) for each in good)
                silent = sum(
                    result.error is not None and not result.error.retry_after for result in results
                )
                with self._lock:
                    self.ends += ends
                    self.ends["wrong"] += wrong
                    self.calls["ok"] += 1
                    self.without_hint += silent
