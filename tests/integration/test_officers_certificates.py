"""One plan rotates thirty keys; an authority outside certifies them, in portions."""

import json
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from signer.client import SignerClientError
from tests.integration import edge, outputs
from tests.integration.officers import Office, csv_of, header
from tests.integration.test_edge_batches import dcc

DCC = "facilities/moh/keys/dcc"
RECORDS = [f"facilities/h-{n:02}/keys/records" for n in range(29)]
KEYS = [*RECORDS, DCC]
SUBJECT = "CN={facility} {key} {version},O=Ministry of Health,C=VN"
VACCINATION = x509.ObjectIdentifier("1.3.6.1.4.1.1847.2021.1.2")
YEAR = 365 * 86_400


class Authority(NamedTuple):
    """An authority outside the appliance."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def certify(self, request: x509.CertificateSigningRequest, **changes: Any) -> bytes:
        """A certificate (DER) as it should be, but for ``changes``."""
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(
            self.certificate.subject,
            request.subject,
            changes.get("public_key", request.public_key()),
            x509.random_serial_number(),
            now - timedelta(minutes=5),
            changes.get("ends", now + timedelta(days=1000)),
        ).add_extension(usage(signs=True), critical=True)
        if changes.get("vaccination", True):
            oids = [changes.get("extended", VACCINATION)]
            builder = builder.add_extension(x509.ExtendedKeyUsage(oids), critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.DER)


def usage(*, signs: bool) -> x509.KeyUsage:
    """For signatures, or for certificates only."""
    no = False
    return x509.KeyUsage(signs, no, no, no, no, not signs, not signs, no, no)


def authority(name: str, above: Authority | None = None) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name.from_rfc4514_string(f"CN={name},C=VN")
    now = datetime.now(UTC)
    issuer, number = above.certificate.subject if above else subject, x509.random_serial_number()
    days = now - timedelta(days=1), now + timedelta(days=3650)
    certificate = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), number, *days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage(signs=False), critical=True)
        .sign(above.key if above else key, hashes.SHA256())
    )
    return Authority(key, certificate)


class Plan(NamedTuple):
    """A rotation that waits for its certificates."""

    office: Office
    operation: str
    root: Authority
    issuer: Authority
    requests: dict[str, x509.CertificateSigningRequest]

    def new(self, key: str) -> Any:
        return self.office.versions(key)[2]

    def give(self, *certificates: bytes) -> None:
        with self.office.client("officer-a") as client:
            client.operations.import_certificates(self.operation, certificates)

    def certificates(self, keys: list[str]) -> list[bytes]:
        """Certificates as they should be; only the ministry's names vaccinations."""
        return [self.issuer.certify(self.requests[key], vaccination=key == DCC) for key in keys]


@pytest.fixture(scope="module")
def plan(appliance: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plan]:
    """Thirty keys of which the second version waits for its certificate."""
    with edge.own(appliance, tmp_path_factory.mktemp("certificates")) as made:
        office = Office(made.dev)
        issuer = made.dev["clients"]["issuer"]["principal"]
        office.do("enrol", csv_of([key.split("/")[1] for key in RECORDS], issuer))
        root = authority("Outside root")
        signing = authority("Outside issuer", root)
        told = office.do(
            "rotate",
            "\n".join(KEYS).encode(),
            activate_at=0,
            overlap_seconds=3600,
            sign_for_seconds=YEAR // 2,
            subject=SUBJECT,
            issuers=[signing.pem, root.pem],
        )
        assert (told.state, told.note) == ("WAITING", "30 of 30 versions wait for certificates")
        requests = {}
        with office.client("officer-a") as client:
            for key in KEYS:
                text = client.get_key_version(f"{key}/versions/2").certification_request
                requests[key] = x509.load_pem_x509_csr(text.encode())
        yield Plan(office, told.id, root, signing, requests)


def hcert(office: Office, tmp_path: Path) -> tuple[str, bytes]:
    """Signs one certificate, which is verified; the version that signed, and the kid it names."""
    payload = dcc()
    with office.client("issuer") as client:
        [item] = client.sign_batch(DCC, "HCERT", [json.dumps(payload).encode()])
        assert item.error is None
        spki = client.get_key_version(item.key_version).public_key
    path = tmp_path / "public.pem"
    path.write_bytes(
        load_der_public_key(spki).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    found = outputs.check_hcert({"public_key": str(path), "algorithm": "ES256"}, item.signature)
    assert found == payload
    compressed = outputs._base45(item.signature.decode()[4:])
    protected = cbor2.loads(zlib.decompress(compressed)).value[0]
    return item.key_version, cbor2.loads(protected)[4]


def kid(certificate: bytes) -> bytes:
    return sha256(certificate).digest()[:8]


def der(request: x509.CertificateSigningRequest) -> bytes:
    """The public key that a request is for."""
    return request.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_every_request_is_its_new_key_s_own(plan: Plan) -> None:
    assert len({der(request) for request in plan.requests.values()}) == 30
    for key, request in plan.requests.items():
        facility, short = key.split("/")[1], key.split("/")[3]
        wanted = SUBJECT.format(facility=facility, key=short, version=2)
        assert request.subject == x509.Name.from_rfc4514_string(wanted)
        assert request.is_signature_valid
        spki = request.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        version = plan.new(key)
        assert (version.public_key, version.state) == (spki, "PRE_ACTIVE")
    with plan.office.client("issuer") as client, pytest.raises(SignerClientError) as refused:
        client.sign_batch(f"{RECORDS[0]}/versions/2", "JWS", [b"{}"])
    assert refused.value.reason == "KEY_VERSION_NOT_ACTIVE"


BAD: dict[str, tuple[Callable[[Plan, Any], bytes], str]] = {
    "another key's": (
        lambda plan, own: plan.issuer.certify(
            own, public_key=ec.generate_private_key(ec.SECP256R1()).public_key()
        ),
        "is not for a new key of this rotation",
    ),
    "outlived": (
        lambda plan, own: plan.issuer.certify(own, ends=datetime.now(UTC) + timedelta(days=400)),
        "must not outlive its certificate",
    ),
    "for TLS": (
        lambda plan, own: plan.issuer.certify(own, extended=ExtendedKeyUsageOID.SERVER_AUTH),
        "extended key usages have none for health certificates",
    ),
    "a namesake's": (
        lambda plan, own: authority("Outside issuer", plan.root).certify(own),
        "was not issued by",
    ),
    "no certificate": (lambda _plan, _own: b"\x30\x03\x02\x01\x01", "is not an X.509 certificate"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_certificate_is_refused_with_all_that_came_with_it(plan: Plan, name: str) -> None:
    make, text = BAD[name]
    good = plan.certificates(RECORDS[:1])
    with pytest.raises(SignerClientError, match=text) as refused:
        plan.give(*good, make(plan, plan.requests[DCC]))
    assert refused.value.reason == "OPERATION_REFUSED"
    assert "certificates[1]" in refused.value.message
    assert "certificates[0]" not in refused.value.message
    for key in (RECORDS[0], DCC):
        version = plan.new(key)
        assert (version.certificate, version.state) == (None, "PRE_ACTIVE")
    told = plan.office.get(plan.operation)
    assert (told.state, told.note) == ("WAITING", "30 of 30 versions wait for certificates")


def test_certificates_come_in_portions_and_each_key_switches_with_its_own(
    plan: Plan, tmp_path: Path
) -> None:
    office = plan.office
    old = hcert(office, tmp_path)
    assert old[0] == f"{DCC}/versions/1"
    first = plan.certificates(RECORDS[:10])
    plan.give(*first)
    told = office.ended(plan.operation)
    assert (told.state, told.note) == ("WAITING", "20 of 30 versions wait for certificates")
    assert [plan.new(key).state for key in KEYS] == ["ACTIVE"] * 10 + ["PRE_ACTIVE"] * 20
    assert plan.new(RECORDS[9]).certificate == first[9]
    assert hcert(office, tmp_path) == old, "the ministry waits for its certificate"

    rest = plan.certificates(KEYS[10:])
    before = time.time()
    plan.give(*rest)
    told = office.ended(plan.operation)
    assert (told.state, told.done, told.total) == ("DONE", 60, 60), told.note
    assert hcert(office, tmp_path) == (f"{DCC}/versions/2", kid(rest[-1]))
    assert old[1] != kid(rest[-1])
    for key, certificate in zip(KEYS, [*first, *rest], strict=True):
        versions = office.versions(key)
        assert (versions[2].state, versions[2].certificate) == ("ACTIVE", certificate)
        assert versions[2].kid == kid(certificate)
        assert versions[1].state == "ACTIVE"
        assert versions[1].deactivate_at is not None
        assert versions[2].sign_until is not None
    new = office.versions(DCC)[2]
    assert new.activate_at.timestamp() >= int(before)
    assert new.sign_until - new.activate_at == timedelta(seconds=YEAR // 2)


def test_records_name_the_new_key(plan: Plan) -> None:
    with plan.office.client("issuer") as client:
        for key in (RECORDS[0], RECORDS[-1]):
            [item] = client.sign_batch(key, "JWS", [b"{}"])
            assert item.key_version == f"{key}/versions/2"
            version = client.get_key_version(item.key_version)
            assert header(item.signature)["kid"] == version.jwk_thumbprint


def test_a_rotation_that_is_done_takes_no_certificates(plan: Plan) -> None:
    with pytest.raises(SignerClientError, match="is not a rotation that waits for certificates"):
        plan.give(*plan.certificates([DCC]))


def test_the_log_accounts_for_all_of_it(plan: Plan) -> None:
    plan.office.log_in_order()
