"""Officers with their files, and an appliance that plays what a test tells it."""

import base64
import hashlib
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from signer.client import (
    Key,
    KeyVersion,
    NotFoundError,
    Officer,
    Officers,
    OfficerSignature,
    Operation,
    Prepared,
    SignerClient,
    WrappingKey,
)
from signer.officers.approval import Proposal, parse
from signer.x509 import cose_kid, jwk_thumbprint

NOW = int(datetime.now(UTC).timestamp())
ES256 = {"algorithm": "ES256", "bits": 0, "token": "", "activate": False, "sign_until": 0}
"""Arguments of create-key where nothing but the algorithm is given."""
A, B, C = (f"spiffe://signer.example/officer/{each}" for each in "abc")


def certify(
    key: Any, subject: str, uri: str | None = None, *, ca: bool = False, days: int = 1
) -> x509.Certificate:
    """A certificate by an authority that nobody has seen."""
    moment = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        x509.Name.from_rfc4514_string("CN=authority,C=VN"),
        x509.Name.from_rfc4514_string(subject),
        key.public_key(),
        x509.random_serial_number(),
        moment - timedelta(days=1),
        moment + timedelta(days=days),
    ).add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    if uri is not None:
        uris = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        builder = builder.add_extension(uris, critical=False)
    return builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


class Person(NamedTuple):
    """An officer, and the files that are hers."""

    principal: str
    client: Path
    certificate: Path
    key: Path
    der: bytes


class People(NamedTuple):
    """Officers a and b; c is one that the appliance does not know yet."""

    a: Person
    b: Person
    c: Person

    @property
    def known(self) -> dict[str, bytes]:
        return {each.principal: each.der for each in (self.a, self.b)}


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> People:
    folder = tmp_path_factory.mktemp("people")

    def make(name: str, principal: str, key: Any) -> Person:
        yaml, pem, key_file = (folder / f"{name}.{end}" for end in ("yaml", "pem", "key"))
        certificate = certify(key, f"CN={name}", principal)
        pem.write_bytes(certificate.public_bytes(Encoding.PEM))
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        key_file.write_bytes(private)
        yaml.write_text(
            f"address: localhost:1\nca: {name}.pem\ncertificate: {name}.pem\nkey: {name}.key\n"
        )
        return Person(principal, yaml, pem, key_file, der(certificate))

    return People(
        make("a", A, ec.generate_private_key(ec.SECP256R1())),
        make("b", B, ed25519.Ed25519PrivateKey.generate()),
        make("c", C, ec.generate_private_key(ec.SECP256R1())),
    )


def version(name: str, state: str = "ACTIVE", **changed: Any) -> KeyVersion:
    """A key version as the client gives it."""
    key = ec.derive_private_key(int.from_bytes(name.encode()) % (1 << 128) + 1, ec.SECP256R1())
    made: KeyVersion = of_key(key, "ES256", name, state, **changed)
    return made


def of_key(key: Any, algorithm: str, name: str, state: str = "ACTIVE", **changed: Any) -> Any:
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    made = KeyVersion(
        name=name,
        algorithm=algorithm,
        state=state,
        public_key=spki,
        certificate=None,
        kid=cose_kid(spki, changed.get("certificate")),
        jwk_thumbprint=jwk_thumbprint(spki),
        created=datetime.fromtimestamp(NOW, UTC),
        activate_at=None if state == "PRE_ACTIVE" else datetime.fromtimestamp(NOW, UTC),
        sign_until=None,
        deactivate_at=None,
        destroy_at=None,
        certification_request="",
        token="t",
        primary=state == "ACTIVE",
    )
    return made._replace(**changed)


_ONLY_MADE = re.compile(
    "reject|retry|suspend_[a-z]+|mark_compromised|suspensions|import_certificates"
)


@dataclass
class FakeOperations:
    """Keeps operations as an appliance does. ``tamper`` changes what it gives to sign.

    ``filled`` are the members of details that it adds.
    """

    known: dict[str, bytes]
    filled: dict[str, Any] = field(default_factory=dict)
    tamper: Callable[[dict[str, Any]], None] = lambda _: None
    difference: tuple[str, ...] = ("~ something changes",)
    problems: tuple[str, ...] = ()
    result: Mapping[str, Any] | None = None
    states: Iterator[str] = field(default_factory=lambda: iter(()))
    asked: list[tuple[str, Any, bytes]] = field(default_factory=list)
    kept: dict[str, Operation] = field(default_factory=dict)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    proposer: str = A
    answers: dict[str, Any] = field(default_factory=dict)

    def prepare(self, kind: str, arguments: Any, attachment: bytes = b"", **_: Any) -> Prepared:
        self.asked.append((kind, arguments, attachment))
        if self.problems:
            return Prepared(b"", (), self.problems)
        details = _worked_out(kind, json.loads(json.dumps(arguments)), attachment, self)
        content = self.content(kind, details)
        origin, identity, text = content.decode().split("\n", 3)[1:]
        members = json.loads(text)
        self.tamper(members)
        return Prepared(Proposal(origin, identity, **members).canonical(), self.difference, ())

    def content(self, kind: str, details: Mapping[str, Any]) -> bytes:
        return Proposal(
            "log", str(uuid.uuid4()), kind, self.proposer, NOW, NOW + 86_400, 2, dict(details)
        ).canonical()

    def propose(self, content: bytes, signature: bytes, attachment: bytes = b"", **_: Any) -> Any:
        self.calls.append(("propose", content, signature, attachment))
        proposal = parse(content)
        signed = OfficerSignature(proposal.proposer, signature, datetime.fromtimestamp(NOW, UTC))
        return self.keep(content, signatures=(signed,))

    def keep(self, content: bytes, **changed: Any) -> Operation:
        proposal = parse(content)
        made = Operation(
            id=proposal.id,
            kind=proposal.kind,
            state="PROPOSED",
            proposer=proposal.proposer,
            proposed=datetime.fromtimestamp(proposal.proposed_at, UTC),
            expires=datetime.fromtimestamp(proposal.expires_at, UTC),
            officers=proposal.officers,
            signatures=(),
            content=content,
            difference=self.difference,
            done=0,
            total=0,
            note="",
            result=None,
            changed=datetime.fromtimestamp(NOW + 2, UTC),
        )._replace(**changed)
        self.kept[made.id] = made
        return made

    def get(self, identity: str) -> Operation:
        return self.kept[identity]

    def list(self, state: str | None = None) -> Iterator[Operation]:
        return (each for each in self.kept.values() if state in (None, each.state))

    def approve(self, identity: str, signature: bytes, **_: Any) -> Operation:
        self.calls.append(("approve", identity, signature))
        found = self.kept[identity]
        signed = OfficerSignature(B, signature, datetime.fromtimestamp(NOW + 1, UTC))
        self.kept[identity] = found._replace(
            signatures=(*found.signatures, signed), state="APPROVED"
        )
        return self.kept[identity]

    def wait(self, identity: str, timeout: float, progress: Any) -> Operation:
        self.calls.append(("wait", identity, timeout))
        for state in self.states:
            self.kept[identity] = self.kept[identity]._replace(state=state, result=self.result)
            progress(self.kept[identity])
        return self.kept[identity]

    def officers(self) -> Officers:
        known = tuple(Officer(who, what) for who, what in sorted(self.known.items()))
        return Officers(known, {"activate": 2}, "log")

    def __getattr__(self, name: str) -> Any:
        """The calls that only are made: they are kept, and answered by ``answers``."""
        if not _ONLY_MADE.fullmatch(name):
            raise AttributeError(name)

        def call(*arguments: Any, **_: Any) -> Any:
            self.calls.append((name, *arguments))
            return self.answers[name]

        return call


def _worked_out(
    kind: str, arguments: dict[str, Any], attachment: bytes, played: FakeOperations
) -> dict[str, Any]:
    """What an appliance makes of arguments (signer.officers)."""

    def encoded(pem: str) -> str:
        return base64.b64encode(der(x509.load_pem_x509_certificate(pem.encode()))).decode()

    if kind == "officers":
        after = {who: base64.b64encode(c).decode() for who, c in played.known.items()}
        for who in arguments["remove"]:
            del after[who]
        for pem in arguments["add"]:
            names = x509.load_pem_x509_certificate(pem.encode()).extensions
            found = names.get_extension_for_class(x509.SubjectAlternativeName).value
            [who] = found.get_values_for_type(x509.UniformResourceIdentifier)
            after[who] = encoded(pem)
        arguments = {"add": [], "remove": [], "officers": after, "replaces": "h"}
    if kind == "import-certificate":
        arguments["certificate"] = encoded(arguments["certificate"])
    if "issuers" in arguments:
        arguments["issuers"] = [encoded(each) for each in arguments["issuers"]]
    if kind == "enrol":
        arguments["csv_sha256"] = hashlib.sha256(attachment).hexdigest()
    for name, value in played.filled.items():
        if not arguments.get(name):
            arguments[name] = value
    return arguments


@dataclass
class FakeClient:
    """What commands get for a connection."""

    operations: FakeOperations
    versions: list[KeyVersion] = field(default_factory=list)
    wrapping_keys: list[WrappingKey] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def list_key_versions(self, parent: str = "") -> Iterator[KeyVersion]:
        return (
            each._replace(certification_request="")
            for each in self.versions
            if not parent or each.name.startswith(f"{parent}/")
        )

    def list_wrapping_keys(self) -> list[WrappingKey]:
        return self.wrapping_keys

    def get_key_version(self, name: str) -> KeyVersion:
        return self._known([each for each in self.versions if each.name == name])[0]

    def get_key(self, name: str) -> Key:
        found = self._known(list(self.list_key_versions(name)))
        primary = next((each for each in found if each.primary), None)
        return Key(name, "ES256", primary, (), 0, ())

    @staticmethod
    def _known(found: list[KeyVersion]) -> list[KeyVersion]:
        if not found:
            raise NotFoundError("NOT_FOUND", "KEY_NOT_FOUND", "unknown")
        return found


@pytest.fixture
def played(people: People, monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    """The appliance that commands meet, whichever client file they are given."""
    fake = FakeClient(FakeOperations(dict(people.known)))
    monkeypatch.setattr(SignerClient, "from_files", lambda *_, **__: fake)
    return fake
