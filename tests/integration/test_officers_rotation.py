"""Keys are rotated while issuers sign, and nobody notices but by the new public key."""

import time

import pytest

from signer.client import SignerClientError
from tests.integration import edge
from tests.integration.officers import Answer, Issuing, Office

KEY = "facilities/01-001/keys/records"
OTHER = "facilities/01-002/keys/records"


def number(version: str) -> int:
    return int(version.rpartition("/")[2])


def rotate(office: Office, issuing: Issuing, *, delay: int, overlap: int) -> int:
    """Rotates KEY once; returns the number of the version that has signed since."""
    office.do(
        "rotate", f"{KEY}\n".encode(), activate_at=int(time.time()) + delay, overlap_seconds=overlap
    )
    new = max(office.versions(KEY))
    issuing.wait(lambda a: a.key == KEY and number(a.version) == new, f"version {new} signs")
    return new


def never_back(answers: list[Answer]) -> None:
    """What begins after another call has ended is signed by that one's version or a later one."""
    mine = [answer for answer in answers if answer.key == KEY]
    by_end = sorted(mine, key=lambda answer: answer.ended)
    newest, place = 0, 0
    for answer in sorted(mine, key=lambda answer: answer.began):
        while by_end[place].ended < answer.began:
            newest, place = max(newest, number(by_end[place].version)), place + 1
        assert number(answer.version) >= newest, answer


def after_its_end(office: Office, version: int) -> None:
    """An old version signs no longer, once the clock has ended it, and never again."""
    edge.until(
        lambda: office.versions(KEY)[version].state == "DEACTIVATED", f"version {version} ends"
    )
    with office.client("issuer") as client:
        for _ in range(3):
            with pytest.raises(SignerClientError) as refused:
                client.sign_batch(f"{KEY}/versions/{version}", "JWS", [b"{}"])
            assert refused.value.reason == "KEY_VERSION_NOT_ACTIVE"


def under_load(office: Office, times: int, *, delay: int, overlap: int) -> Issuing:
    """Rotates so many times while three issuers sign with the key and one with another."""
    first = max(office.versions(KEY))
    with Issuing(office, [KEY, KEY, KEY, OTHER]) as issuing:
        issuing.signing(KEY)
        for done in range(times):
            new = rotate(office, issuing, delay=delay, overlap=overlap)
            assert new == first + done + 1
        issuing.signing(OTHER)
    assert issuing.refusals() == {}
    never_back(issuing.answers)
    signed = {number(answer.version) for answer in issuing.answers if answer.key == KEY}
    assert signed == set(range(first, first + times + 1)), "every version had its time"
    assert {number(answer.version) for answer in issuing.answers if answer.key == OTHER} == {1}
    for version in range(first, first + times):
        after_its_end(office, version)
    states = [each.state for _, each in sorted(office.versions(KEY).items())]
    assert states == ["DEACTIVATED"] * (len(states) - 1) + ["ACTIVE"]
    return issuing


def test_two_rotations_under_load(office: Office) -> None:
    issuing = under_load(office, 2, delay=1, overlap=1)
    print(f"\n{len(issuing.answers)} calls, none failed, over 2 rotations")


def test_the_version_before_signs_for_the_overlap_where_it_is_named(office: Office) -> None:
    office.do("rotate", f"{OTHER}\n".encode(), activate_at=0, overlap_seconds=3600)
    before = office.versions(OTHER)
    assert [each.state for each in before.values()] == ["ACTIVE", "ACTIVE"]
    with office.client("issuer") as client:
        for asked, used in [
            (OTHER, f"{OTHER}/versions/2"),
            (f"{OTHER}/versions/1", f"{OTHER}/versions/1"),
        ]:
            [item] = client.sign_batch(asked, "JWS", [b"{}"])
            assert (item.error, item.key_version) == (None, used)


def test_the_log_accounts_for_all_of_it(office: Office) -> None:
    office.log_in_order()


@pytest.mark.torture
@pytest.mark.parametrize("times", [100])
def test_many_rotations_without_delay_or_overlap(office: Office, times: int) -> None:
    issuing = under_load(office, times, delay=0, overlap=0)
    print(f"\n{len(issuing.answers)} calls, none failed, over {times} rotations")
