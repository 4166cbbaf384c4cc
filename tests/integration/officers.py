"""Two officers at work on a development appliance, and issuers that sign meanwhile."""

import base64
import hashlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import yaml
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import load_der_public_key

from signer.client import Operation as Told
from signer.client import SignerClient, SignerClientError, sign_operation
from tests.daemon import verified

SECONDS = 60.0


class Office:
    """Officers a and b, as dev.json names them; ``do`` is for operations with one thing changed.

    Others join by an entry in ``dev["clients"]`` and their private key in ``keys``.
    """

    def __init__(self, dev: Mapping[str, Any]) -> None:
        self.dev = dev
        self.keys = {
            name: Path(client["key"]).read_bytes() for name, client in dev["clients"].items()
        }

    @contextmanager
    def client(self, name: str) -> Iterator[SignerClient]:
        identity = self.dev["clients"][name]
        with SignerClient.from_files(
            self.dev["address"],
            server_name=self.dev["server_name"],
            ca=self.dev["ca"],
            certificate=identity["cert"],
            key=identity["key"],
        ) as client:
            yield client

    def problems(self, kind: str, attachment: bytes = b"", **arguments: Any) -> tuple[str, ...]:
        """What is wrong with an operation, as officer a hears it."""
        with self.client("officer-a") as client:
            return tuple(client.operations.prepare(kind, arguments, attachment).problems)

    def prepare(
        self, kind: str, attachment: bytes = b"", *, by: str = "officer-a", **arguments: Any
    ) -> bytes:
        """The bytes of an operation that nobody has proposed yet."""
        with self.client(by) as client:
            prepared = client.operations.prepare(kind, arguments, attachment)
        assert not prepared.problems, prepared.problems
        return prepared.content

    def propose(
        self, kind: str, attachment: bytes = b"", *, by: str = "officer-a", **arguments: Any
    ) -> Told:
        content = self.prepare(kind, attachment, by=by, **arguments)
        with self.client(by) as client:
            signature = sign_operation(content, self.keys[by])
            return client.operations.propose(content, signature, attachment)

    def approve(self, identity: str, *, by: str = "officer-b") -> Told:
        with self.client(by) as client:
            content = client.operations.get(identity).content
            return client.operations.approve(identity, sign_operation(content, self.keys[by]))

    def get(self, identity: str) -> Told:
        with self.client("officer-b") as client:
            return client.operations.get(identity)

    def ended(self, identity: str, seconds: float = SECONDS) -> Told:
        """The operation at its end, or when it waits."""
        end, pause = time.monotonic() + seconds, 0.02
        with self.client("officer-b") as client:
            while True:
                told = client.operations.get(identity)
                if told.state in ("DONE", "FAILED", "WAITING", "REJECTED"):
                    return told
                assert time.monotonic() < end, f"{told.kind} is still {told.state}: {told.note}"
                time.sleep(pause)
                pause = min(1.2 * pause, 0.5)  # asking often is work for the daemon, too

    def do(
        self, kind: str, attachment: bytes = b"", *, seconds: float = SECONDS, **arguments: Any
    ) -> Told:
        """Proposes, approves and waits; the operation must be done."""
        proposed = self.propose(kind, attachment, **arguments)
        self.approve(proposed.id)
        told = self.ended(proposed.id, seconds)
        assert told.state in ("DONE", "WAITING"), told.note
        return told

    def log_in_order(self) -> None:
        """Verifies the whole log offline: it accounts for all that was done and signed."""
        config = Path(self.dev["config"])
        origin = yaml.safe_load(config.read_text())["audit"].get("origin", "signer/audit")
        report = verified(config.parent / "audit", origin, "--decide")
        assert report["problems"] == []
        assert report["decided_intents"] == report["kinds"]["intent"] > 0

    def versions(self, key: str) -> dict[int, Any]:
        """All versions of a key by their number, as an officer sees them."""
        with self.client("officer-a") as client:
            return {
                int(each.name.rpartition("/")[2]): each for each in client.list_key_versions(key)
            }


def csv_of(facilities: Iterator[str] | list[str], issuer: str, *, key: str = "records") -> bytes:
    """The CSV of facilities with one ES256 key each, for one issuing system."""
    lines = [f"{each},01,records,{issuer},{key},ES256," for each in facilities]
    return "\n".join(["facility,group,profile,clients,key,algorithm,bits", *lines, ""]).encode()


class Answer(NamedTuple):
    """One call: when it began and ended (of one clock, so they are in order), and how.

    ``signed`` items have a signature, all verified; ``failed`` says why others have none,
    ``refused`` why the whole call was.
    """

    key: str
    began: float
    ended: float
    version: str
    signed: int
    failed: Mapping[str, int]
    refused: str


class Issuing:
    """Issuers that sign batch after batch inside a ``with`` block, each with one key.

    Every signature is verified with the public key of the version that the answer names.
    """

    def __init__(
        self, office: Office, keys: list[str], *, items: int = 20, form: str = "JWS"
    ) -> None:
        self._office, self._items, self._form = office, items, form
        self.answers: list[Answer] = []
        self.errors: list[BaseException] = []
        self._publics: dict[str, ec.EllipticCurvePublicKey] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(key,)) for key in keys]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(SECONDS)
        assert not any(thread.is_alive() for thread in self._threads), "a call hangs"
        assert not self.errors, self.errors

    def wait(self, happened: Callable[[Answer], object], what: str) -> Answer:
        """The first call from now on of which something is so."""
        start, end = len(self.answers), time.monotonic() + SECONDS
        while True:
            answers = self.answers[start:]
            start += len(answers)
            for answer in answers:
                if happened(answer):
                    return answer
            assert time.monotonic() < end, f"not within {SECONDS:g} s: {what}"
            assert not self.errors, self.errors
            time.sleep(0.005)

    def signing(self, key: str) -> None:
        """Waits until a call that begins from now on is signed in full."""
        now = time.monotonic()
        self.wait(
            lambda a: a.key == key and a.began > now and a.signed == self._items, f"{key} signs"
        )

    def refusals(self) -> Counter[str]:
        """Why calls were refused and items failed, all together."""
        found: Counter[str] = Counter()
        for answer in self.answers:
            found.update(answer.failed)
            if answer.refused:
                found[answer.refused] += 1
        return found

    def _run(self, key: str) -> None:
        try:
            with self._office.client("issuer") as client:
                while not self._over.is_set():
                    self._call(client, key)
        except BaseException as error:  # noqa: BLE001 - a thread's end must not be silent
            self.errors.append(error)

    def _call(self, client: SignerClient, key: str) -> None:
        payloads = [self._payload() for _ in range(self._items)]
        began = time.monotonic()
        try:
            items = client.sign_batch(key, self._form, payloads, timeout=SECONDS)
        except SignerClientError as error:
            self.answers.append(Answer(key, began, time.monotonic(), "", 0, {}, error.reason))
            return
        ended = time.monotonic()
        signed = [
            (payload, item.signature)
            for payload, item in zip(payloads, items, strict=True)
            if item.error is None
        ]
        failed = Counter(item.error.reason for item in items if item.error is not None)
        public = self._public(client, items[0].key_version)
        for payload, signature in signed:
            check(public, self._form, payload, signature)
        version = items[0].key_version
        self.answers.append(Answer(key, began, ended, version, len(signed), failed, ""))

    def _payload(self) -> bytes:
        return (
            os.urandom(32)
            if self._form == "DIGEST"
            else b'{"n":"%s"}' % os.urandom(8).hex().encode()
        )

    def _public(self, client: SignerClient, version: str) -> ec.EllipticCurvePublicKey:
        with self._lock:
            if version not in self._publics:
                found = load_der_public_key(client.get_key_version(version).public_key)
                assert isinstance(found, ec.EllipticCurvePublicKey)
                self._publics[version] = found
            return self._publics[version]


def check(public: ec.EllipticCurvePublicKey, form: str, payload: bytes, output: bytes) -> None:
    """Raises where an output is no JWS over exactly this payload, or of this digest."""
    signature = output
    digest = payload
    if form == "JWS":
        signed, _, encoded = output.rpartition(b".")
        _, _, body = signed.partition(b".")
        assert _unpadded(body) == payload
        signature, digest = _unpadded(encoded), hashlib.sha256(signed).digest()
    assert len(signature) == 64
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    algorithm = ec.ECDSA(utils.Prehashed(hashes.SHA256()))
    public.verify(utils.encode_dss_signature(r, s), digest, algorithm)


def header(jws: bytes) -> dict[str, Any]:
    """The header of a compact JWS."""
    found: dict[str, Any] = json.loads(_unpadded(jws.partition(b".")[0]))
    return found


def _unpadded(text: bytes) -> bytes:
    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
