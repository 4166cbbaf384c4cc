"""Subjects as officers write them: bounds in characters, and errors that name the part."""

import warnings
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from signer.distinguished_name import ignore_lengths, parse_name

LONG = "Viện Kiểm nghiệm quốc gia vắc xin và sinh phẩm y tế"  # 51 characters, 66 bytes


@pytest.fixture(autouse=True)
def silent() -> None:
    ignore_lengths()


def test_lengths_are_characters_and_not_bytes() -> None:
    name = parse_name(f"CN={LONG},C=VN")
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    assert request.subject.rfc4514_string() == f"CN={LONG},C=VN"
    assert request.is_signature_valid
    with pytest.raises(ValueError, match="CN has 65 characters, at most 64 are allowed"):
        parse_name(f"CN={'ế' * 65}")


def test_a_process_can_read_such_names_without_warnings() -> None:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = parse_name(f"CN={LONG}")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        ignore_lengths()
        assert certificate.subject == name
    assert warned == []


@pytest.mark.parametrize(
    ("text", "as_library_reads"),
    [
        ("cn=DCC 1, o = Ministry of Health , C=VN", "CN=DCC 1,O=Ministry of Health,C=VN"),
        (r"CN=a\, b\+c\=d,O=\C4\90a", "CN=a\\, b\\+c=d,O=Đa"),
        ("CN=a+OU=b,2.5.4.5=12", "CN=a+OU=b,2.5.4.5=12"),
        (r"CN=\ a\ ", "CN=\\ a\\ "),
        ("CN=a=b", "CN=a=b"),
    ],
)
def test_blanks_and_case_do_not_count(text: str, as_library_reads: str) -> None:
    assert parse_name(text) == x509.Name.from_rfc4514_string(as_library_reads)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("C=Vietnam", r"C=Vietnam must be two letters, as in C=VN \(ISO 3166\)"),
        ("CN=a,C=84", "C=84 must be two letters"),
        ("me", "'me' has no equals sign: write for instance CN=me"),
        ("CN=a,,C=VN", "'' has no equals sign"),
        ("CN=", "CN is empty"),
        ("CN=a,MAIL=b", "MAIL is not one of CN, O, OU"),
        ("O=" + "o" * 65, "O has 65 characters, at most 64"),
        ("CN=a;C=VN", r"write \\; for the character ;"),
        ("CN=#0c0141", r"write \\# for the character #"),
        ("CN=a\\", "a backslash at its end escapes nothing"),
        ("CN=\\FF", r"\\FF is not UTF-8"),
    ],
)
def test_an_error_names_the_part(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_name(text)


@given(
    st.lists(
        st.sampled_from(["CN", "O", "OU", "L"]).flatmap(
            lambda name: st.tuples(
                st.just(name),
                st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=16),
            )
        ),
        min_size=1,
        max_size=4,
    )
)
def test_what_the_library_writes_is_read_as_the_same_name(parts: list[tuple[str, str]]) -> None:
    names = {"CN": "2.5.4.3", "O": "2.5.4.10", "OU": "2.5.4.11", "L": "2.5.4.7"}
    name = x509.Name(
        [x509.NameAttribute(x509.ObjectIdentifier(names[kind]), value) for kind, value in parts]
    )
    assert parse_name(name.rfc4514_string()) == name


@given(st.text(max_size=40))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        name = parse_name(text)
    except ValueError as error:
        assert str(error)
    else:
        assert parse_name(name.rfc4514_string()) == name
