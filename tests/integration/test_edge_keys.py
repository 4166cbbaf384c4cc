"""KeyService over the wire: pages, visibility, bad names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from cryptography.x509 import load_der_x509_certificate, load_pem_x509_certificate

from signer.v1 import keys_pb2, signing_pb2
from tests.integration import edge


@pytest.fixture(scope="module")
def auditor(appliance: Any) -> Iterator[edge.Stubs]:
    with edge.connect(appliance.dev, "auditor") as stubs:
        yield stubs


def page(stubs: edge.Stubs, **fields: Any) -> Any:
    return stubs.keys.ListKeys(keys_pb2.ListKeysRequest(**fields), timeout=edge.SECONDS)


def get(stubs: edge.Stubs, name: str) -> Any:
    return stubs.keys.GetKey(keys_pb2.GetKeyRequest(name=name), timeout=edge.SECONDS).key


def get_version(stubs: edge.Stubs, name: str) -> Any:
    request = keys_pb2.GetKeyVersionRequest(name=name)
    return stubs.keys.GetKeyVersion(request, timeout=edge.SECONDS).key_version


@pytest.mark.parametrize("size", [1, 3, 8, 9, 1000])
@pytest.mark.parametrize("name", ["auditor", "issuer"])
def test_pages_hold_every_key_once_in_order(appliance: Any, name: str, size: int) -> None:
    names, token = list[str](), ""
    with edge.connect(appliance.dev, name) as stubs:
        while True:
            found = page(stubs, page_size=size, page_token=token)
            assert 1 <= len(found.keys) <= size
            names += [key.name for key in found.keys]
            token = found.next_page_token
            if not token:
                break
    assert names == sorted(key["name"] for key in appliance.dev["keys"])


@pytest.mark.parametrize("token", ["zzz", "facilities/x", "facilities//keys/", "a" * 5000])
@pytest.mark.parametrize("method", ["ListKeys", "ListKeyVersions"])
def test_a_page_token_is_one_of_ours(auditor: edge.Stubs, method: str, token: str) -> None:
    request = getattr(keys_pb2, f"{method}Request")(page_token=token)
    refused = edge.refused(lambda: getattr(auditor.keys, method)(request, timeout=edge.SECONDS))
    assert (refused.reason, refused.fields) == ("FIELD_INVALID", ("page_token",))


def test_a_facility_is_a_parent(auditor: edge.Stubs, issuer: edge.Stubs) -> None:
    for stubs in (auditor, issuer):
        names = [key.name for key in page(stubs, parent="facilities/01-002").keys]
        assert names == ["facilities/01-002/keys/records"]
        found = page(stubs, parent="facilities/nowhere")
        assert (list(found.keys), found.next_page_token) == ([], "")
        assert not page(stubs, parent="facilities/01").keys


def test_who_may_not_sign_sees_no_rights(auditor: edge.Stubs, issuer: edge.Stubs) -> None:
    theirs, mine = get(auditor, edge.RECORDS), get(issuer, edge.RECORDS)
    assert (list(theirs.formats), theirs.max_batch_items, list(theirs.quotas)) == ([], 0, [])
    assert [signing_pb2.Format.Name(number) for number in mine.formats] == [
        "FORMAT_MESSAGE",
        "FORMAT_JWS",
        "FORMAT_COSE_SIGN1",
    ]
    assert mine.max_batch_items == 4096
    assert [(quota.limit, quota.window_seconds) for quota in mine.quotas] == [
        (1_000_000, 1),
        (10_000_000_000, 86_400),
    ]
    assert (theirs.primary.token, mine.primary.token) == ("signer-dev", "")
    assert [placed.token for placed in theirs.primary.placements] == ["signer-dev"]
    theirs.primary.ClearField("token")
    theirs.primary.ClearField("placements")
    assert theirs.primary == mine.primary


def test_issuers_do_not_see_wrapping_keys(auditor: edge.Stubs, issuer: edge.Stubs) -> None:
    request = keys_pb2.ListWrappingKeysRequest()
    answer = auditor.keys.ListWrappingKeys(request, timeout=edge.SECONDS)
    assert list(answer.wrapping_keys) == []
    refused = edge.refused(lambda: issuer.keys.ListWrappingKeys(request, timeout=edge.SECONDS))
    assert refused.reason == "POLICY_DENIED"


def test_every_version_shows_its_public_key_and_certificate(
    appliance: Any, auditor: edge.Stubs
) -> None:
    for key in appliance.dev["keys"]:
        version = get_version(auditor, f"{key['name']}/versions/1")
        public = load_pem_public_key(Path(key["public_key"]).read_bytes())
        der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        assert version.public_key == der
        assert version.state == keys_pb2.KEY_STATE_ACTIVE
        algorithm = keys_pb2.Algorithm.Name(version.algorithm)
        assert algorithm == f"ALGORITHM_{key['algorithm'].upper()}"
        if key["certificate"]:
            pem = Path(key["certificate"]).read_bytes()
            assert load_der_x509_certificate(version.certificate) == load_pem_x509_certificate(pem)
        else:
            assert version.certificate == b""
        assert get(auditor, key["name"]).primary == version


def test_what_may_be_seen_but_is_absent(auditor: edge.Stubs, issuer: edge.Stubs) -> None:
    for stubs in (auditor, issuer):
        for call in (
            lambda stubs=stubs: get(stubs, "facilities/01-001/keys/none"),
            lambda stubs=stubs: get_version(stubs, "facilities/01-001/keys/none/versions/1"),
            lambda stubs=stubs: get_version(stubs, f"{edge.RECORDS}/versions/2"),
        ):
            edge.refused(call, "KEY_NOT_FOUND")
    assert edge.refused(lambda: get(auditor, "facilities/no/keys/k")).reason == "KEY_NOT_FOUND"
    assert edge.refused(lambda: get(issuer, "facilities/no/keys/k")).reason == "POLICY_DENIED"


@pytest.mark.parametrize("name", ["", "x", "facilities/01-001", f"{edge.RECORDS}/versions/1"])
def test_get_key_wants_a_key(auditor: edge.Stubs, name: str) -> None:
    assert field(lambda: get(auditor, name)) == "name"


@pytest.mark.parametrize("name", ["", "x", edge.RECORDS, f"{edge.RECORDS}/versions/x"])
def test_get_key_version_wants_a_version(auditor: edge.Stubs, name: str) -> None:
    assert field(lambda: get_version(auditor, name)) == "name"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("page_size", -1),
        ("page_size", 1001),
        ("parent", "01-001"),
        ("parent", "facilities/"),
        ("parent", "facilities/01-001/keys"),
        ("parent", "facilities/*"),
    ],
)
def test_bad_fields_of_a_list(auditor: edge.Stubs, name: str, value: Any) -> None:
    assert field(lambda: page(auditor, **{name: value})) == name


def field(call: Any) -> str:
    refusal = edge.refused(call, "FIELD_INVALID")
    [name] = refusal.fields
    return name
