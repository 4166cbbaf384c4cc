"""The bytes of an operation as officers read them: all of them, whatever they contain."""

import base64
from dataclasses import replace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from signer.officers.approval import ApprovalError
from signer.officers.signed_text import signed_text
from tests.unit.cli.operations_played import certify, der
from tests.unit.officers.test_approval import PROPOSAL

HANOI = ZoneInfo("Asia/Ho_Chi_Minh")


def shown(details: dict[str, Any]) -> list[str]:
    lines = signed_text(replace(PROPOSAL, details=details).canonical(), HANOI)
    return [" ".join(line.split()) for line in lines]


def test_every_line_and_member_is_shown_in_order() -> None:
    details = {"key": "facilities/f/keys/k", "subject": "", "bits": 3072, "activate": True}
    assert shown(details) == [
        "signer.v1 approval",
        f"origin {PROPOSAL.origin}",
        f"id {PROPOSAL.id}",
        "details",
        "activate yes",
        "bits 3072",
        "key facilities/f/keys/k",
        "subject -",
        "expires at 2026-01-12 07:00:00+07:00 (1768176000)",
        "kind create-key",
        "officers 2",
        "proposed at 2026-01-05 07:00:00+07:00 (1767571200)",
        f"proposer {PROPOSAL.proposer}",
    ]


def test_the_deployment_is_shown_as_the_other_lines_of_the_head() -> None:
    deployed = replace(PROPOSAL, deployment="0123456789abcdef0123456789abcdef")
    lines = signed_text(deployed.canonical())
    assert f"{'deployment':<16} {deployed.deployment}" in lines
    assert f"{'id':<16} {deployed.id}" in lines


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("sign_until", 1_768_176_000, "sign until 2026-01-12 07:00:00+07:00 (1768176000)"),
        ("at", 0, "at none (0)"),
        ("activate_at", 1 << 52, f"activate at a time that no calendar has ({1 << 52})"),
        ("overlap_seconds", 604_800, "overlap seconds 7 days (604800)"),
        ("destroy_after_seconds", 0, "destroy after seconds none (0)"),
        ("since", 1_768_176_000_000_001, "since 2026-01-12 07:00:00+07:00 (1768176000000001)"),
        ("in_force_since", 7, "in force since 7"),
        ("subject", "CN=x\n+ harmless", r'subject "CN=x\n+ harmless"'),
        ("subject", "CN=x" + " " * 200 + "y", f'subject "CN=x {"y"}"'),
        ("csv_sha256", "ab" * 32, f"csv sha256 {'ab' * 32}"),
        ("replace", None, "replace -"),
    ],
)
def test_values_are_shown_in_words_and_as_they_are_signed(
    name: str, value: object, line: str
) -> None:
    assert line in shown({name: value})


def test_a_certificate_is_described_with_its_end() -> None:
    certificate = certify(
        ec.generate_private_key(ec.SECP256R1()), "CN=B,C=VN", "spiffe://x.example/b", days=3
    )
    encoded = base64.b64encode(der(certificate)).decode()
    lines = shown({"officers": {"spiffe://x.example/b": encoded}})
    ends = certificate.not_valid_after_utc.astimezone(HANOI).isoformat(" ", "seconds")
    begin = lines.index("officers")
    assert lines[begin + 1] == "spiffe://x.example/b"
    assert "subject CN=B,C=VN" in lines
    assert "URI spiffe://x.example/b" in lines
    assert f"valid until {ends}" in lines


_names = st.text("abc_ \n\x1b", min_size=1, max_size=6)
_values = st.recursive(
    st.integers(0, 1 << 52) | st.booleans() | st.text(max_size=20) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(_names, _values, max_size=4))
def test_no_member_is_left_out_and_none_controls_the_terminal(details: dict[str, Any]) -> None:
    try:
        content = replace(PROPOSAL, details=details).canonical()
        lines = signed_text(content)
    except (ApprovalError, UnicodeEncodeError):  # half a surrogate pair
        return
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 9 + _counted(details)


def _counted(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(1 + _counted(each) for each in inner)
