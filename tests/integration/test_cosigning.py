"""A ministry key that demands the facility's signed record, on a real appliance."""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from signer.audit.format.batch_records import IntentRecord
from signer.client import InvalidRequestError
from tests.appliances import Appliance, serving
from tests.commands import signer
from tests.integration import edge, outputs
from tests.integration.test_audit_daemon import records as log_records

RECORDS, DCC = "facilities/01-001/keys/records", "facilities/moh/keys/dcc"
RULE = "facilities.moh.keys.dcc.cosigning"
MEMBERS = {"v.0.ci": "certificate.id", "nam.fnt": "name", "dob": "born"}


def change(policy: dict[str, Any]) -> None:
    rule = {"profiles": ["records"], "members": MEMBERS}
    policy["facilities"]["moh"]["keys"]["dcc"]["cosigning"] = rule


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    made = Appliance(tmp_path_factory.mktemp("cosigning") / "appliance")
    made.init()
    made.edit_policy(change)
    with serving(made):
        yield made


def certificate(number: int) -> dict[str, Any]:
    entry = {
        "tg": "840539006",
        "vp": "1119349007",
        "mp": "EU/1/20/1528",
        "ma": "ORG-100030215",
        "dn": 1,
        "sd": 2,
        "dt": "2021-06-11",
        "co": "VN",
        "is": "Ministry of Health",
        "ci": f"URN:UVCI:01:VN:{number}",
    }
    name = {"fn": "Nguyễn", "fnt": "NGUYEN"}
    return {"ver": "1.3.0", "nam": name, "dob": f"19{number + 50}-01-01", "v": [entry]}


def record(of: dict[str, Any]) -> bytes:
    """What the facility signs of the same vaccination, in its own words."""
    made = {"certificate": {"id": of["v"][0]["ci"]}, "name": of["nam"]["fnt"], "born": of["dob"]}
    return json.dumps(made | {"lot": "0000007"}).encode()


CERTIFICATES = [certificate(number) for number in range(20)]
PAYLOADS = [json.dumps(each).encode() for each in CERTIFICATES]


@pytest.fixture(scope="module")
def records(own: Any) -> list[bytes]:
    with own.client() as client:
        results = client.sign(RECORDS, "JWS", map(record, CERTIFICATES))
        return [result.signature for result in results]


def test_certificates_beside_their_records_are_signed(own: Any, records: list[bytes]) -> None:
    with own.client() as client:
        results = list(
            client.sign(DCC, "HCERT", PAYLOADS, batch_items=7, cosignatures=iter(records))
        )
    assert [result.error for result in results] == [None] * len(PAYLOADS)
    for result in results:
        outputs.check_hcert(own.key("moh/dcc"), result.signature)


def test_a_record_of_another_certificate_denies_only_its_item(
    own: Any, records: list[bytes]
) -> None:
    beside = [records[0], records[2], b"", records[3][:-4] + b"AAAA", records[4]]
    with own.client() as client:
        results = client.sign_batch(DCC, "HCERT", PAYLOADS[:5], cosignatures=beside)
    assert [result.ok for result in results] == [True, False, False, False, True]
    for result, words in zip(
        results[1:4],
        (
            "v.0.ci is not certificate.id",
            "has no signed record",
            "signature of the record is wrong",
        ),
        strict=True,
    ):
        assert result.error is not None
        assert result.error.reason == "CONTENT_DENIED"
        assert result.error.metadata["rule"] == RULE
        assert words in result.error.message


def test_without_records_the_key_signs_nothing(own: Any, records: list[bytes]) -> None:
    with own.client() as client:
        needs = {key: client.get_key(key).needs_cosignatures for key in (DCC, RECORDS)}
        assert needs == {DCC: True, RECORDS: False}
        for given in ([], records[:1]):
            with pytest.raises(InvalidRequestError, match="cosignatures"):
                client.sign_batch(DCC, "HCERT", PAYLOADS[:2], cosignatures=given)
        with pytest.raises(InvalidRequestError, match="send none"):
            client.sign_batch(RECORDS, "JWS", [b"{}"], cosignatures=records[:1])


def test_the_command_takes_a_record_a_line_and_the_log_finds_it(
    own: Any, records: list[bytes], tmp_path: Path
) -> None:
    payloads, beside = tmp_path / "payloads", tmp_path / "records"
    payloads.write_bytes(b"\n".join(PAYLOADS[:3]) + b"\n")
    beside.write_bytes(b"\n".join(records[:3]) + b"\n")
    words = ("--client", own.client_file(), "--key", DCC, "--format", "HCERT", "--lines")
    done = signer("sign", *words, "--cosignatures", beside, "--json", payloads)
    assert done.code == 0, done.err
    number = json.loads(done.out.splitlines()[0])["audit_record"]
    [intent] = [each for each in log_records(own) if each.seq == number]
    links = IntentRecord.from_fields(intent.fields).cosigned
    assert links == b"".join(sha256(each).digest() for each in records[:3])
    (tmp_path / "record.jws").write_bytes(records[0])
    config = ("--config", own.dir / "signer.yaml")
    found = signer("audit", "find", *config, "--file", tmp_path / "record.jws")
    assert "This very message was signed here" in found.out
    beside.write_bytes(records[0] + b"\n")
    done = signer("sign", *words, "--cosignatures", beside, payloads)
    assert done.code == 1
    assert "has fewer lines than there are payloads" in done.err


def test_a_facility_that_officers_stop_co_signs_no_more(own: Any, records: list[bytes]) -> None:
    stop = ("--client", own.client_file("officer-a"), "--reason", "stolen", "--yes")
    done = signer("keys", "suspend", "facilities/01-001", *stop)
    assert done.code == 0, done.err

    def reason() -> str:
        with own.client() as client:
            [result] = client.sign_batch(DCC, "HCERT", PAYLOADS[:1], cosignatures=records[:1])
        return "" if result.error is None else result.error.message

    edge.until(lambda: "the signed record does not count" in reason(), "the stop is served")
