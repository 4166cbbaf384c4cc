"""Certificates from outside: whose they must be, for how long, and for what."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key

from signer.officers.store import OperationState
from signer.x509 import cose_kid
from tests.unit.officers.opstage import CLINIC, DAY, MINISTRY, START, Stage
from tests.unit.officers.people import Authority, key_of, pem
from tests.unit.officers.softtoken import spki_of

NOW = datetime.fromtimestamp(START, UTC)
YEAR = 365 * DAY
VACCINATION, SERVER = "1.3.6.1.4.1.1847.2021.1.2", "1.3.6.1.5.5.7.3.1"
ONE = f"{MINISTRY}/versions/1"


@pytest.fixture
def key(stage: Stage) -> str:
    return stage.key(MINISTRY, activate=False)


def given(stage: Stage, authority: Authority, **changed: Any) -> dict[str, Any]:
    """What imports a good certificate, but for what a test changes of it."""
    spki = changed.pop("spki", None) or stage.version(ONE).spki
    certificate = authority.certify(spki, **changed)
    return {"version": ONE, "certificate": pem(certificate), "issuers": [authority.pem]}


def test_a_certificate_is_imported(stage: Stage, key: str, authority: Authority) -> None:
    members = given(stage, authority, usages=[VACCINATION])
    kid = cose_kid(
        b"",
        x509.load_pem_x509_certificate(members["certificate"].encode()).public_bytes(Encoding.DER),
    )
    assert stage.prepare("import-certificate", **members).difference == [
        f"~ {key} gets a certificate",
        "  subject CN=signer,C=VN",
        "  issuer  CN=authority,C=VN",
        "  valid   from 2025-01-01T00:00:00Z",
        "          to 2060-01-01T00:00:00Z",
        f"  kid     {stage.version(key).kid.hex()} becomes {kid.hex()}",
    ]
    operation = stage.done("import-certificate", **members)
    assert operation.result == {"key_version": key, "kid": kid.hex()}
    assert stage.version(key).kid == kid


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"spki": spki_of(key_of("nobody"))}, "its public key is not this version's"),
        ({"ends": NOW - timedelta(days=1)}, "it expired on"),
        ({"begins": NOW + timedelta(days=1)}, "it is not valid before"),
        ({"digital_signature": False}, "without digitalSignature"),
        ({"usages": [SERVER]}, "have none for health certificates"),
        ({"ca": True}, "of an authority (CA), not of a signing key"),
    ],
)
def test_a_certificate_is_refused(
    stage: Stage, key: str, authority: Authority, changed: dict[str, Any], told: str
) -> None:
    problems = stage.problems("import-certificate", **given(stage, authority, **changed))
    assert told in "\n".join(problems)
    assert stage.version(key).certificate is None


def test_all_that_is_wrong_with_a_certificate_is_told(
    stage: Stage, key: str, authority: Authority
) -> None:
    del key
    wrong = {"spki": spki_of(key_of("nobody")), "ends": NOW - timedelta(days=1), "usages": [SERVER]}
    members = given(stage, authority, **wrong) | {"issuers": [Authority().pem]}
    text = "\n".join(stage.problems("import-certificate", **members))
    for told in ("public key", "expired", "health certificates", "was not issued by"):
        assert told in text


def test_usages_of_another_kind_do_not_matter_to_other_keys(
    stage: Stage, authority: Authority
) -> None:
    name = stage.key(CLINIC)
    members = given(stage, authority, spki=stage.version(name).spki, usages=[SERVER])
    stage.done("import-certificate", **members | {"version": name})


def test_a_chain_is_followed_to_its_end(stage: Stage, key: str, authority: Authority) -> None:
    middle = Authority("CN=middle", authority)
    lower = Authority("CN=lower", middle)
    members = given(stage, lower)
    chain = [lower.pem, middle.pem, authority.pem]
    stage.done("import-certificate", **members | {"issuers": chain})
    assert stage.version(key).certificate is not None


def chains(authority: Authority) -> dict[str, tuple[list[str], str]]:
    none = Authority("CN=authority,C=VN", ca=False)
    old = Authority("CN=middle", authority, ends=NOW - timedelta(days=1))
    return {
        "no issuer": ([], "name the authority"),
        "too many": ([authority.pem] * 6, "1 to 5 in all"),
        "another of the same name": (
            [Authority().pem],
            "was not issued by CN=authority,C=VN: its signature is by another key of that name",
        ),
        "another name": (
            [Authority("CN=other").pem],
            "was not issued by CN=other: it names CN=authority,C=VN as its issuer",
        ),
        "one is left out": ([authority.pem, Authority("CN=root").pem], "was not issued by CN=root"),
        "no authority": ([none.pem], "is not an authority"),
        "an old one": ([old.pem, authority.pem], "is not valid now"),
        "no certificate": (["x"], "not an X.509 certificate"),
        "two in one": ([authority.pem * 2], "several certificates"),
    }


@pytest.mark.parametrize("name", chains(Authority()))
def test_a_chain_is_refused(stage: Stage, key: str, authority: Authority, name: str) -> None:
    del key
    issuers, told = chains(authority)[name]
    problems = stage.problems(
        "import-certificate", **given(stage, authority) | {"issuers": issuers}
    )
    assert told in "\n".join(problems)


def test_a_certificate_with_a_part_that_cannot_be_read(
    stage: Stage, key: str, authority: Authority
) -> None:
    """The library reads extensions late; whoever sends this must not meet a bug of ours."""
    del key
    members = given(stage, authority)
    der = x509.load_pem_x509_certificate(members["certificate"].encode()).public_bytes(Encoding.DER)
    # The BIT STRING in the octets of keyUsage becomes an INTEGER.
    usage, wrong = bytes.fromhex("551d0f0101ff040403"), bytes.fromhex("551d0f0101ff040402")
    assert usage in der
    certificate = pem(x509.load_der_x509_certificate(der.replace(usage, wrong)))
    [problem] = stage.problems("import-certificate", **members | {"certificate": certificate})
    assert "the certificate has the extension keyUsage, which cannot be read" in problem


@pytest.mark.parametrize(
    ("oid", "name", "value"),
    [
        ("2.5.29.19", "basicConstraints", "3003010100"),  # DER leaves the default FALSE out
        ("2.5.29.37", "extKeyUsage", "3000"),  # empty
    ],
)
def test_the_extension_that_is_not_strict_der_is_named(
    stage: Stage, key: str, authority: Authority, oid: str, name: str, value: str
) -> None:
    """As real authorities have issued them."""
    del key
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), bytes.fromhex(value))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(authority.name)
        .issuer_name(authority.name)
        .public_key(load_der_public_key(stage.version(ONE).spki))  # type: ignore[arg-type]
        .serial_number(5)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=900))
        .add_extension(x509.KeyUsage(*[True] + 8 * [False]), critical=True)
        .add_extension(extension, critical=False)
        .sign(key_of("authority"), hashes.SHA256())
    )
    members = given(stage, authority) | {"certificate": pem(certificate)}
    [problem] = stage.problems("import-certificate", **members)
    assert f"the certificate has the extension {name}, which cannot be read" in problem


@pytest.mark.parametrize("text", ["", "x", "-----BEGIN CERTIFICATE-----", "a" * 70_000])
def test_refused_certificates(stage: Stage, key: str, authority: Authority, text: str) -> None:
    del key
    assert stage.problems("import-certificate", **given(stage, authority) | {"certificate": text})


def test_another_certificate_only_where_officers_say_so(
    stage: Stage, key: str, authority: Authority
) -> None:
    stage.done("import-certificate", **given(stage, authority))
    first = stage.version(key).certificate
    again = given(stage, authority)
    assert "has another certificate" in stage.problems("import-certificate", **again)[0]
    shown = stage.prepare("import-certificate", **again, replace=True).difference
    assert shown[-1] == "! it has another certificate: verifiers must know the new one first"
    stage.done("import-certificate", **again, replace=True)
    assert stage.version(key).certificate != first


@pytest.mark.parametrize("replaces", [False, True])
def test_of_two_imports_the_second_does_not_replace_what_its_officers_never_saw(
    stage: Stage, key: str, authority: Authority, replaces: bool
) -> None:
    """Both were proposed while the version had no certificate."""
    later = NOW + timedelta(days=2 * 365)
    members = [given(stage, authority) | {"replace": replaces}]
    members += [given(stage, authority, ends=later) | {"replace": replaces}]
    first, second = (stage.propose("import-certificate", **each).id for each in members)
    stage.approve(first)
    stage.approve(second)
    assert stage.operation(first).state is OperationState.DONE
    assert stage.operation(second).state is OperationState.FAILED
    assert "has changed since this was proposed" in stage.operation(second).note
    imported = x509.load_pem_x509_certificate(members[0]["certificate"].encode())
    assert stage.version(key).certificate == imported.public_bytes(Encoding.DER)


@pytest.mark.parametrize("replaces", [False, True])
def test_an_import_that_was_not_executed_accounts_for_no_exchange_of_a_certificate(
    stage: Stage, key: str, authority: Authority, replaces: bool
) -> None:
    """Somebody writes by SQL what an approved import that failed would have done."""
    later = NOW + timedelta(days=2 * 365)
    members = [given(stage, authority) | {"replace": replaces}]
    members += [given(stage, authority, ends=later) | {"replace": replaces}]
    first, second = (stage.propose("import-certificate", **each).id for each in members)
    stage.approve(first)
    stage.approve(second)
    der = x509.load_pem_x509_certificate(members[1]["certificate"].encode()).public_bytes(
        Encoding.DER
    )
    with stage.registry.writing() as write:
        run, revision = write.connection.exec_driver_sql, write.revision
        run(
            "UPDATE key_versions SET certificate = ?, kid = ?, revision = ?",
            (der, cose_kid(b"", der), revision),
        )
        run(
            "UPDATE operations SET state = 'DONE', ended_revision = ? WHERE id = ?",
            (revision, second),
        )
    stage.serving.follow()
    assert any(key in text for text in stage.serving.refused)
    stage.seen.seen.clear()


def test_what_has_ended_needs_no_certificate(stage: Stage, key: str, authority: Authority) -> None:
    stage.emergency.compromise("spiffe://signer.example/officer/a", key, "lost")
    told = stage.problems("import-certificate", **given(stage, authority))
    assert told == [f"{key} is COMPROMISED: it no longer needs a certificate"]


# --- what is signed does not outlive the certificate ------------------------------------------


def test_a_version_without_a_certificate_signs_no_health_certificates(
    stage: Stage, key: str
) -> None:
    [problem] = stage.problems("activate", version=key, sign_until=int(START) + DAY)
    assert "has no certificate, which HCERT needs" in problem


def test_sign_until_and_the_validity_fit_into_the_certificate(
    stage: Stage, key: str, authority: Authority
) -> None:
    ends = NOW + timedelta(days=730)
    stage.done("import-certificate", **given(stage, authority, ends=ends))
    latest = int(START) + 365 * DAY
    for until in (0, latest + 1):
        [problem] = stage.problems("activate", version=key, sign_until=until)
        assert "sign_until is at most 2027-01-05T00:00:00Z" in problem
    stage.done("activate", version=key, sign_until=latest)
    assert stage.states(MINISTRY) == ["ACTIVE"]


def test_a_certificate_that_ends_too_early_is_told_with_the_time_that_it_needs(
    stage: Stage, key: str, authority: Authority
) -> None:
    ends = NOW + timedelta(days=300)
    stage.done("import-certificate", **given(stage, authority, ends=ends))
    [problem] = stage.problems("activate", version=key, sign_until=int(START) + DAY)
    assert f"{key}: its certificate ends too early, on " in problem
    assert "is valid for 365 days, so the certificate must last longer than until" in problem
    assert "sign_until" not in problem, "a time in the past is no help"


def test_a_certificate_that_would_end_too_early_does_not_take_the_place_of_a_good_one(
    stage: Stage, key: str, authority: Authority
) -> None:
    """The version signs already: its sign_until was fitted to the certificate before."""
    stage.done("import-certificate", **given(stage, authority))
    stage.done("activate", version=key, sign_until=int(START) + YEAR)
    short = given(stage, authority, ends=NOW + timedelta(days=729)) | {"replace": True}
    [problem] = stage.problems("import-certificate", **short)
    assert "must not outlive its certificate" in problem
    long = given(stage, authority, ends=NOW + timedelta(days=730)) | {"replace": True}
    stage.done("import-certificate", **long)


def test_nothing_is_activated_before_its_certificate_begins(
    stage: Stage, key: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = given(stage, authority, begins=NOW + timedelta(days=2))
    now = stage.clock.time
    monkeypatch.setattr(stage.clock, "raise_floor", lambda _: None)
    stage.clock.time = now + 2 * DAY
    stage.done("import-certificate", **members)
    stage.clock.time = now + DAY  # a clock that was set back before the daemon began
    [problem] = stage.problems("activate", version=key, sign_until=int(START) + 9 * DAY)
    assert "not valid yet at the activation" in problem


def test_the_request_is_what_an_authority_reads(stage: Stage) -> None:
    stage.key(MINISTRY, activate=False, subject="CN=DCC 1,C=VN")
    request = x509.load_pem_x509_csr(str(stage.version(ONE).request).encode())
    assert isinstance(request.signature_hash_algorithm, hashes.SHA256)
