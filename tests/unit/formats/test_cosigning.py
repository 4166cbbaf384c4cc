"""A certificate is prepared only beside a signed record that holds and says the same."""

import base64
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from signer.algorithms import Algorithm
from signer.errors import Failure, Reason
from signer.format_terms import Cosigned, Cosigner, CosignTerms
from signer.formats import FORMATS
from signer.model import Format
from tests.unit.formats.conftest import ContextMaker, SoftKey

HCERT, JWS = FORMATS[Format.HCERT], FORMATS[Format.JWS]
MEMBERS = {"nam.fn": "name", "v.0.ci": "id", "dob": "person.born"}
RULE = "profiles.ministry.cosigning"
RECORD = {"name": "Nguyễn", "id": "URN:1", "person": {"born": "1980-01-01"}, "lot": 7}


def certificate(**changes: Any) -> bytes:
    made = {"ver": "1.3.0", "nam": {"fn": "Nguyễn"}, "dob": "1980-01-01", "v": [{"ci": "URN:1"}]}
    return json.dumps(made | changes).encode()


def signed(key: SoftKey, context: ContextMaker, record: Any) -> bytes:
    ctx = context(version=key.version)
    payload = record if isinstance(record, bytes) else json.dumps(record).encode()
    prepared = JWS.prepare([payload], ctx)
    [made] = JWS.finish(prepared, [key.sign(prepared.to_sign[0])], ctx)
    return made


def cosigned(key: SoftKey, *records: bytes, said: str = "") -> Cosigned:
    def correct(data: bytes, signature: bytes) -> bool:
        try:
            key.verify(signature, data)
        except Exception:  # noqa: BLE001 - of whatever kind of key
            return False
        return True

    def find(kid: str) -> Cosigner | str:
        return Cosigner(key.version.algorithm, correct) if kid == key.version.thumbprint else said

    return Cosigned(CosignTerms(frozenset({"records"}), MEMBERS, RULE), records, find)


@pytest.fixture
def judge(
    keys: dict[Algorithm, SoftKey], context: ContextMaker
) -> Callable[..., dict[int, Failure]]:
    def prepare(
        payloads: list[bytes], records: list[bytes], said: str = "", first: int = 0
    ) -> dict[int, Failure]:
        ctx = dataclasses.replace(
            context(), cosigned=cosigned(keys[Algorithm.ES384], *records, said=said), first=first
        )
        prepared = HCERT.prepare(payloads, ctx)
        assert [bool(each) for each in prepared.to_sign] == [
            index not in prepared.failures for index in range(len(payloads))
        ]
        return prepared.failures

    return prepare


def test_a_record_that_says_the_same_lets_its_certificate_pass(
    judge: Callable[..., dict[int, Failure]], keys: dict[Algorithm, SoftKey], context: ContextMaker
) -> None:
    record = signed(keys[Algorithm.ES384], context, RECORD)
    assert judge([certificate()], [record]) == {}


def test_items_keep_their_records_whatever_fails_before_them(
    judge: Callable[..., dict[int, Failure]], keys: dict[Algorithm, SoftKey], context: ContextMaker
) -> None:
    ids = ["URN:1", "URN:2", "URN:3"]
    records = [signed(keys[Algorithm.ES384], context, RECORD | {"id": each}) for each in ids]
    payloads = [certificate(v=[{"ci": each}]) for each in ids]
    assert judge([payloads[0], b"no certificate", payloads[2]], records).keys() == {1}
    assert judge(payloads, [records[0], records[2], records[1]]).keys() == {1, 2}
    assert judge(payloads[1:], records, first=1) == {}


def forged(record: bytes, change: bytes) -> bytes:
    head, _, signature = record.split(b".")
    return b".".join((head, base64.urlsafe_b64encode(change).rstrip(b"="), signature))


def test_what_does_not_hold_is_denied_by_the_rule(
    judge: Callable[..., dict[int, Failure]], keys: dict[Algorithm, SoftKey], context: ContextMaker
) -> None:
    key = keys[Algorithm.ES384]
    good = signed(key, context, RECORD)
    other = json.dumps(RECORD | {"name": "Trần"}).encode()
    unknown = dataclasses.replace(key.version, thumbprint="another")
    cases = {
        b"": "the payload has no signed record",
        b"not a JWS": "is not a compact JWS",
        forged(good, other): "the signature of the record is wrong",
        good[:-4] + b"AAAA": "the signature of the record is wrong",
        signed(SoftKey(key.private, unknown), context, RECORD): "does not count: it was stopped",
        signed(key, context, RECORD | {"name": "Trần"}): "nam.fn is not name of the signed record",
        signed(key, context, {"id": "URN:1"}): "nam.fn is not name of the signed record",
        signed(key, context, RECORD | {"person": ["1980-01-01"]}): "dob is not person.born",
        signed(key, context, RECORD | {"id": ["URN:1"]}): "v.0.ci is not id",
    }
    for record, words in cases.items():
        failure = judge([certificate()], [record], said="it was stopped")[0]
        assert (failure.reason, failure.rule) == (Reason.CONTENT_DENIED, RULE), words
        assert words in failure.message
    assert len(cases) == 9


@pytest.mark.parametrize(("ours", "theirs"), [(1, True), (0, False), (1, 1.0), (1, "1")])
def test_values_of_other_kinds_are_not_the_same(
    judge: Callable[..., dict[int, Failure]],
    keys: dict[Algorithm, SoftKey],
    context: ContextMaker,
    ours: object,
    theirs: object,
) -> None:
    record = signed(keys[Algorithm.ES384], context, RECORD | {"id": theirs})
    assert judge([certificate(v=[{"ci": ours}])], [record]).keys() == {0}


def test_a_member_that_the_certificate_does_not_have_is_not_matched_by_none(
    judge: Callable[..., dict[int, Failure]], keys: dict[Algorithm, SoftKey], context: ContextMaker
) -> None:
    record = signed(keys[Algorithm.ES384], context, {"id": "URN:1", "person": {}})
    failure = judge([certificate(nam={})], [record])[0]
    assert "nam.fn is not name" in failure.message
