"""What a refusal says: numbers of things in their right form."""

from pathlib import Path

import pytest

from signer.clock import SystemClock
from signer.errors import CallError, Reason
from signer.model import Format, KeyName
from signer.signing.request import BatchRequest
from tests.stand_ins import key_version
from tests.unit.signing.stage import CLIENT, Stage

POLICY = """
roles: {operator: []}
profiles:
  records:
    formats: [JWS]
    algorithms: [ES256]
    max_batch_items: BATCH
    quotas: ["QUOTA per day"]
    lifetime_signatures: LIFETIME
facilities:
  "a": {profile: records, clients: ["spiffe://x/issuer"]}
"""
KEY = KeyName("a", "k")


@pytest.mark.parametrize(
    ("limits", "signed", "asked", "reason", "said"),
    [
        (
            {"LIFETIME": 1},
            1,
            1,
            Reason.KEY_VERSION_EXHAUSTED,
            "may make 1 signature in its lifetime, of which 0 are left for 1 item:",
        ),
        (
            {"LIFETIME": 3},
            2,
            2,
            Reason.KEY_VERSION_EXHAUSTED,
            "may make 3 signatures in its lifetime, of which 1 is left for 2 items:",
        ),
        (
            {"QUOTA": 1},
            1,
            1,
            Reason.QUOTA_EXCEEDED,
            "the quota of 1 per day has no room for 1 more: 1 is used and 0 left until ",
        ),
        (
            {"QUOTA": 3},
            2,
            2,
            Reason.QUOTA_EXCEEDED,
            "the quota of 3 per day has no room for 2 more: 2 are used and 1 left until ",
        ),
        ({"BATCH": 1}, 0, 2, Reason.FIELD_INVALID, "has 2 items, the limit here is 1: split it"),
    ],
)
def test_numbers_have_the_right_form(
    tmp_path: Path, limits: dict[str, int], signed: int, asked: int, reason: Reason, said: str
) -> None:
    policy = POLICY
    for name, limit in ({"BATCH": 9, "QUOTA": 9, "LIFETIME": 9} | limits).items():
        policy = policy.replace(name, str(limit))
    stage = Stage(tmp_path, policy, [key_version(key=KEY, cka_id=b"1")])

    def sign(items: int) -> None:
        deadline = SystemClock().monotonic() + 30
        stage.sign(BatchRequest(CLIENT, KEY, None, Format.JWS, (b"{}",) * items, deadline, ""))

    if signed:
        sign(signed)
    with pytest.raises(CallError) as caught:
        sign(asked)
    stage.close()
    assert caught.value.reason is reason
    assert said in str(caught.value.violations or caught.value)
