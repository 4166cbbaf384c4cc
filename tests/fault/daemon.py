"""Callers of a daemon while faults happen to it."""

import os
import threading
from collections import Counter
from types import TracebackType
from typing import Self

from signer.client import SignerClientError
from signer.config.models import load_config
from signer.config.policy_documents import read_policy
from signer.keys.registry import Registry
from tests.daemon import RECORDS, SECONDS, Daemon, correct, until

OTHERS = "facilities/01-002/keys/records"
RSA = "facilities/01-001/keys/records-rsa"


def check_all(daemon: Daemon) -> None:
    """Has every signature checked, as is the default outside of development."""
    path = daemon.folder / "policy" / "policy.yaml"
    path.write_text(path.read_text().replace("check_every: 64", "check_every: 1"))
    config = load_config(daemon.folder / "signer.yaml")
    _, text = read_policy(config.policy)
    with Registry.open(config.registry) as registry, registry.writing() as write:
        write.put_policy(text)


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
