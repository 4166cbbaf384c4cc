"""What officers sign: one encoding of every operation, and signatures that openssl makes."""

import json
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from signer.officers.approval import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_NUMBER,
    MAX_SIGNATURE_BYTES,
    ApprovalError,
    Proposal,
    Signature,
    check_approved,
    check_signature,
    officers_sha256,
    parse,
    valid_signers,
)

PROPOSAL = Proposal(
    origin="signer.example/log",
    id="6a9b7d3e-0000-4000-8000-000000000001",
    kind="create-key",
    proposer="spiffe://signer.example/officer/a",
    proposed_at=1_767_571_200,
    expires_at=1_768_176_000,
    officers=2,
    details={"algorithm": "ES256", "keys": ["a", "b"]},
)
TEXT = b"""signer.v1 approval
signer.example/log
6a9b7d3e-0000-4000-8000-000000000001
{
  "details": {
    "algorithm": "ES256",
    "keys": [
      "a",
      "b"
    ]
  },
  "expires_at": 1768176000,
  "kind": "create-key",
  "officers": 2,
  "proposed_at": 1767571200,
  "proposer": "spiffe://signer.example/officer/a"
}
"""

# Surrogates are half a character: no other encoding holds them.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
SCALARS = st.none() | st.booleans() | st.integers() | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=12,
)
PROPOSALS = st.builds(
    Proposal,
    origin=st.sampled_from(["signer.example/log", "x"]),
    id=st.uuids().map(str),
    kind=st.sampled_from(["create-key", "policy", "officers"]),
    proposer=TEXTS,
    proposed_at=st.integers(0, MAX_NUMBER - 1),
    expires_at=st.integers(0, MAX_NUMBER - 1),
    officers=st.integers(2, 9),
    details=st.dictionaries(TEXTS, VALUES, max_size=4),
)


# --- bytes -------------------------------------------------------------------------------------


def test_the_deployment_has_a_line_of_its_own() -> None:
    named = replace(PROPOSAL, deployment="0f" * 16)
    head, text = TEXT.split(b"{", 1)
    assert named.canonical() == head + b"deployment " + b"0f" * 16 + b"\n{" + text
    assert parse(named.canonical()) == named
    assert parse(TEXT).deployment == ""
    for wrong in (b"0F" * 16, b"0f" * 15, b"", b"0f" * 16 + b" "):
        with pytest.raises(ApprovalError):
            parse(head + b"deployment " + wrong + b"\n{" + text)


def test_the_bytes_are_text_that_an_officer_can_read() -> None:
    assert PROPOSAL.canonical() == TEXT
    assert parse(TEXT) == PROPOSAL


@given(PROPOSALS)
def test_what_is_written_is_read_again(proposal: Proposal) -> None:
    data = proposal.canonical()
    assert data.isascii()
    assert parse(data) == proposal


def as_json(head: str, members: Mapping[str, Any], **options: Any) -> bytes:
    return (head + json.dumps(members, **options) + "\n").encode("ascii", "surrogateescape")


@given(PROPOSALS, st.data())
def test_every_other_encoding_of_the_same_value_is_refused(
    proposal: Proposal, data: st.DataObject
) -> None:
    canonical = proposal.canonical()
    *first, text = canonical.decode().split("\n", 3)
    head, members = "\n".join(first) + "\n", json.loads(text)
    others = [
        as_json(head, members),
        as_json(head, members, indent=1),
        as_json(head, members, indent=2),
        as_json(head, dict(reversed(members.items())), indent=2),
        canonical[:-1],
        canonical + b"\n",
        canonical.replace(b"\n", b"\r\n"),
        canonical.replace(b'"kind"', b'"\\u006bind"'),
        canonical.replace(b'"officers": ', b'"officers":  '),
        canonical.replace(b'"officers": ', b'"officers": 7,\n  "officers": '),
        head.upper().encode() + text.encode(),
    ]
    assert json.loads(others[0].split(b"\n", 3)[3]) == members
    other = data.draw(st.sampled_from([each for each in others if each != canonical]))
    with pytest.raises(ApprovalError):
        parse(other)


@given(st.binary(max_size=200) | st.integers(0, len(TEXT) - 1).map(lambda end: TEXT[:end]))
def test_other_bytes_are_no_operation(data: bytes) -> None:
    with pytest.raises(ApprovalError):
        parse(data)


@given(st.integers(0, len(TEXT) - 1), st.integers(1, 255))
def test_one_changed_byte_never_reads_as_the_same(place: int, mask: int) -> None:
    changed = bytearray(TEXT)
    changed[place] ^= mask
    with suppress(ApprovalError):
        assert parse(bytes(changed)) != PROPOSAL


def with_members(**members: Any) -> bytes:
    """The bytes of the operation with other members, as they would be written."""
    *first, text = TEXT.decode().split("\n", 3)
    changed = {**json.loads(text), **members}
    written = json.dumps(changed, indent=2, sort_keys=True)
    return "\n".join([*first, written, ""]).encode()


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    "members",
    [
        {"kind": "Create"},
        {"kind": ""},
        {"kind": "a-"},
        {"kind": 1},
        {"kind": "create-key\n"},
        {"proposer": None},
        {"proposed_at": -1},
        {"proposed_at": "1"},
        {"proposed_at": True},
        {"expires_at": 1.0},
        {"expires_at": MAX_NUMBER},
        {"officers": 1},
        {"officers": 2.0},
        {"details": []},
        {"details": None},
        {"details": {"a": 1.5}},
        {"details": {"a": -0.0}},
        {"details": {"a": 1e300}},
        {"details": {"a": float("nan")}},
        {"details": {"a": float("inf")}},
        {"details": {"a": [float("-inf")]}},
        {"details": {"a": "\ud800"}},
        {"details": {"\udfff": 1}},
        {"proposer": "\ud800"},
        {"details": {"a": nested(MAX_DEPTH - 1)}},
        {"more": 1},
    ],
)
def test_operations_with_other_members_are_refused(members: dict[str, Any]) -> None:
    assert with_members() == TEXT
    with pytest.raises(ApprovalError):
        parse(with_members(**members))


def test_members_may_lie_so_deep_and_no_deeper() -> None:
    assert parse(with_members(details={"a": nested(MAX_DEPTH - 2)})).details
    with pytest.raises(ApprovalError, match="deep"):
        parse(with_members(details={"a": nested(MAX_DEPTH - 1)}))


@pytest.mark.parametrize("depth", [100, 900, 100_000])
def test_deep_json_is_refused_before_it_is_written_again(depth: int) -> None:
    """Indented, so many numbers so deep would be hundreds of megabytes."""
    many = b"[" * depth + b"0,0," * ((MAX_BYTES - 2 * depth - 1000) // 4) + b"0" + b"]" * depth
    deep = TEXT.replace(b'"ES256"', many)
    assert len(deep) <= MAX_BYTES
    with pytest.raises(ApprovalError):
        parse(deep)


def test_a_number_of_too_many_digits_is_refused() -> None:
    with pytest.raises(ApprovalError):
        parse(TEXT.replace(b'"ES256"', b"9" * 10_000))


def test_a_member_that_stands_twice_is_refused() -> None:
    twice = TEXT.replace(b'"officers": 2,', b'"officers": 2,\n  "officers": 2,')
    assert json.loads(twice.split(b"\n", 3)[3])["officers"] == 2
    with pytest.raises(ApprovalError):
        parse(twice)


@pytest.mark.parametrize("origin", ["", "\x1b[2J", "a\rb", "log\x00"])
def test_an_origin_that_a_terminal_would_not_show_is_refused(origin: str) -> None:
    with pytest.raises(ApprovalError):
        parse(replace(PROPOSAL, origin=origin).canonical())


@pytest.mark.parametrize(
    "identity",
    [
        "",
        "6A9B7D3E-0000-4000-8000-000000000001",
        "6a9b7d3e000040008000000000000001",
        "urn:uuid:6a9b7d3e-0000-4000-8000-000000000001",
    ],
)
def test_an_id_in_another_form_is_refused(identity: str) -> None:
    with pytest.raises(ApprovalError):
        parse(replace(PROPOSAL, id=identity).canonical())


@pytest.mark.parametrize("members", [b"[]", b"null", b"1", b'"x"', b"{}", b"[[]]"])
def test_json_that_is_no_object_of_ours_is_refused(members: bytes) -> None:
    head = TEXT[: TEXT.index(b"{")]
    with pytest.raises(ApprovalError):
        parse(head + members + b"\n")


def test_an_operation_of_a_mebibyte_is_read_and_none_that_is_longer() -> None:
    spare = MAX_BYTES - len(replace(PROPOSAL, details={"a": ""}).canonical())
    longest = replace(PROPOSAL, details={"a": "x" * spare})
    assert len(longest.canonical()) == MAX_BYTES
    assert parse(longest.canonical()) == longest
    with pytest.raises(ApprovalError, match=f"longer than {MAX_BYTES}"):
        parse(replace(PROPOSAL, details={"a": "x" * (spare + 1)}).canonical())


# --- signatures --------------------------------------------------------------------------------

KEYS = {
    "ec": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
    "ec384": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"],
    "rsa": ["-newkey", "rsa:2048"],
    "ed25519": ["-newkey", "ed25519"],
    "ed448": ["-newkey", "ed448"],
}
WHO = PROPOSAL.proposer


class Officer(NamedTuple):
    """A key that openssl made, and a certificate of it for ten days."""

    name: str
    key: Path
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def now(self) -> float:
        return self.certificate.not_valid_before_utc.timestamp()

    def sign(self, data: bytes = TEXT) -> bytes:
        file = self.key.with_suffix(".content")
        file.write_bytes(data)
        if self.name.startswith("ed"):
            command = ["pkeyutl", "-sign", "-rawin", "-inkey", str(self.key), "-in", str(file)]
        else:
            command = ["dgst", "-sha256", "-sign", str(self.key), str(file)]
        return subprocess.run(["openssl", *command], check=True, capture_output=True).stdout


@pytest.fixture(scope="module")
def officer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Officer]:
    folder = tmp_path_factory.mktemp("officers")
    made: dict[str, Officer] = {}

    def make(name: str) -> Officer:
        if name not in made:
            key, cert = folder / f"{name}.pem", folder / f"{name}.crt"
            request = ["req", "-x509", "-nodes", "-days", "10", "-subj", "/CN=officer"]
            files = ["-keyout", str(key), "-out", str(cert)]
            command = ["openssl", *request, *KEYS[name], *files]
            subprocess.run(command, check=True, capture_output=True)
            loaded = x509.load_pem_x509_certificate(cert.read_bytes())
            made[name] = Officer(name, key, loaded)
        return made[name]

    return make


Make = Callable[[str], Officer]


@pytest.mark.parametrize("name", ["ec", "ec384", "rsa", "ed25519"])
def test_a_signature_by_openssl_counts_over_these_bytes_only(officer: Make, name: str) -> None:
    one = officer(name)
    signature = Signature(WHO, one.sign(), one.now)
    check_signature(TEXT, signature, {WHO: one.der}, one.now)
    assert valid_signers(TEXT, [signature, signature], {WHO: one.der}) == {WHO}
    with pytest.raises(ApprovalError, match="over this operation's bytes"):
        check_signature(TEXT + b"\n", signature, {WHO: one.der}, one.now)


@pytest.mark.parametrize("name", ["ec", "rsa", "ed25519"])
def test_what_is_no_signature_of_this_key_is_refused(officer: Make, name: str) -> None:
    one = officer(name)
    good = one.sign()
    other = officer("ec384" if name == "ec" else "ec").sign()
    for bad in (b"", good[:-1], good + b"\x00", other, bytes(len(good)), bytes(2000)):
        with pytest.raises(ApprovalError, match="not by"):
            check_signature(TEXT, Signature(WHO, bad, one.now), {WHO: one.der}, one.now)


def test_another_key_and_who_is_no_officer_are_refused(officer: Make) -> None:
    one, other = officer("ec"), officer("ec384")
    now = max(one.now, other.now)
    signature = Signature(WHO, one.sign(), now)
    with pytest.raises(ApprovalError, match="not by"):
        check_signature(TEXT, signature, {WHO: other.der}, now)
    with pytest.raises(ApprovalError, match="is not an officer"):
        check_signature(TEXT, signature, {"spiffe://else": one.der}, now)
    assert valid_signers(TEXT, [signature], {}) == frozenset()


@pytest.mark.parametrize("seconds", [-1, 10 * 86_400 + 1, float("nan")])
def test_a_certificate_counts_while_it_is_valid(officer: Make, seconds: float) -> None:
    one = officer("ec")
    signature = Signature(WHO, one.sign(), one.now + seconds)
    officers = {WHO: one.der}
    check_signature(TEXT, signature, officers, one.now)
    check_signature(TEXT, signature, officers, one.certificate.not_valid_after_utc.timestamp())
    with pytest.raises(ApprovalError, match=r"not valid yet|ended on"):
        check_signature(TEXT, signature, officers, signature.at)
    assert valid_signers(TEXT, [signature], officers) == frozenset()


def test_a_key_of_another_kind_and_a_certificate_that_is_none_are_refused(officer: Make) -> None:
    one = officer("ed448")
    signature = Signature(WHO, one.sign(), one.now)
    assert len(signature.signature) <= MAX_SIGNATURE_BYTES
    with pytest.raises(ApprovalError, match="not by"):
        check_signature(TEXT, signature, {WHO: one.der}, one.now)
    for bad in (b"", b"certificate", one.der[:-1]):
        with pytest.raises(ApprovalError, match="is not valid DER"):
            check_signature(TEXT, signature, {WHO: bad}, one.now)


# --- approvals ---------------------------------------------------------------------------------


def test_enough_different_officers_in_time_and_the_proposer_among_them(officer: Make) -> None:
    names = {WHO: "ec", "b": "rsa", "c": "ed25519"}
    officers = {who: officer(name).der for who, name in names.items()}
    now = max(officer(name).now for name in names.values())
    proposal = replace(PROPOSAL, proposed_at=int(now) - 60, expires_at=int(now) + 60)
    data = proposal.canonical()
    first, second, third = (
        Signature(who, officer(name).sign(data), now) for who, name in names.items()
    )
    check_approved(proposal, data, [first, second], officers)
    check_approved(proposal, data, [third, first], officers)
    refused = {
        "1 of 2": [
            [first],
            [first, first],
            [first, second._replace(at=now + 60)],
            [first, second._replace(at=now - 70)],  # by the signed bytes it was not proposed yet
        ],
        "has not validly signed": [[], [second, third], [first._replace(officer="b"), third]],
    }
    for text, lists in refused.items():
        for signatures in lists:
            with pytest.raises(ApprovalError, match=text):
                check_approved(proposal, data, signatures, officers)
    three = replace(proposal, officers=3)
    with pytest.raises(ApprovalError, match="has not validly signed"):
        check_approved(three, three.canonical(), [first, second, third], officers)


def test_a_set_of_officers_is_named_by_who_they_are_and_their_certificates() -> None:
    officers = {"a": b"1", "b": b"2"}
    assert officers_sha256(officers) == officers_sha256(dict(reversed(officers.items())))
    others = [
        {},
        {"a": b"1"},
        {"a": b"2", "b": b"1"},
        {"a": b"1", "c": b"2"},
        {"a": b"1", "b": b""},
    ]
    names = {officers_sha256(each) for each in [officers, *others]}
    assert len(names) == 1 + len(others)
