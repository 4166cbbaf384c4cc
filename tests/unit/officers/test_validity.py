"""Which officers can sign by their certificates, and how doctor and gauges say it."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from signer.observe.gauges import officer_readings
from signer.officers.validity import Validity
from signer.tools.doctor.finding import Level
from signer.tools.doctor.storage import judge_officers
from tests.unit.officers.people import A, B, C, certificate_of

NOW = datetime(2026, 6, 1, tzinfo=UTC)
AT = NOW.timestamp()


def officers(**days: float) -> Mapping[str, bytes]:
    """Officers a, b and c by the days that their certificates are still valid; None: early."""
    found = {}
    for name, left in days.items():
        who = {"a": A, "b": B, "c": C}[name]
        certificate = certificate_of(who, ends=NOW + timedelta(days=left))
        found[who] = certificate.public_bytes(Encoding.DER)
    return found


def early(who: str) -> Mapping[str, bytes]:
    certificate = certificate_of(who, begins=NOW + timedelta(days=1))
    return {who: certificate.public_bytes(Encoding.DER)}


def test_officers_are_sorted_by_their_certificates() -> None:
    found = Validity.of({**officers(a=10, b=-1), **early(C)}, AT)
    assert found.valid == {A: AT + 10 * 86_400}
    assert found.ended == {B}
    assert found.early == {C}
    assert found.next_end == AT + 10 * 86_400
    end = Validity.of(officers(a=10, b=20), AT + 10 * 86_400)
    assert end.valid.keys() == {A, B}  # the last second counts
    later = Validity.of(officers(a=10, b=20), AT + 10 * 86_400 + 1)
    assert later.valid.keys() == {B}
    assert later.ended == {A}
    assert Validity.of(officers(a=-1), AT).next_end is None
    assert Validity.of(officers(a=-1, b=29, c=31), AT).ending == ((B, AT + 29 * 86_400),)


def test_gauges_say_how_many_can_sign_and_when_the_next_one_cannot() -> None:
    found = officer_readings({**officers(a=10, b=-1), **early(C)}, 2, AT)
    assert found["signer_officers"] == {("valid",): 1, ("ended",): 1, ("early",): 1}
    assert found["signer_officers_needed"] == {(): 2}
    assert found["signer_officer_expiry_timestamp_seconds"] == {(): AT + 10 * 86_400}
    assert officer_readings(officers(a=-1), 2, AT)["signer_officer_expiry_timestamp_seconds"] == {}


@pytest.mark.parametrize(
    ("days", "level", "seen", "remedy"),
    [
        ({"a": 400, "b": 300, "c": 200}, Level.OK, "3 of 3 officers have a valid", ""),
        (
            {"a": 400, "b": 29, "c": 200},
            Level.WARNING,
            f"{B} ends at 2026-06-30T00:00:00Z",
            "renew",
        ),
        ({"a": 400, "b": -1, "c": 200}, Level.WARNING, f"{B} has ended", "--add FILE"),
        (
            {"a": 400, "b": -1},
            Level.WRONG,
            "1 of 2 officers have a valid certificate, and",
            "renew",
        ),
        ({"a": -1, "b": -2}, Level.WRONG, "0 of 2 officers", "no way back"),
    ],
)
def test_doctor_judges_certificates_of_officers(
    days: dict[str, float], level: Level, seen: str, remedy: str
) -> None:
    found = judge_officers(officers(**days), 2, AT)
    assert (found.check, found.level) == ("officers", level)
    assert seen in found.seen
    assert remedy in found.remedy
