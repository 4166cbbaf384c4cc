"""Gauges as they are read: zeros that are told, and when the keys of a group end."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from signer.hsm.front.scheduler import Waiting
from signer.hsm.front.service import Hsm
from signer.hsm.front.slot import WorkerStatus
from signer.key_index import KeyIndex
from signer.model import KeyName, KeyState, KeyVersion, Placement
from signer.observe.gauges import KEYS_CHANGED_SECONDS, KEYS_SECONDS, KeyReadings, readings
from signer.policy.usage import Usage
from signer.signing.request import Snapshot
from tests.stand_ins import key_version

NOW, DAY = 1_000_000.0, 86_400.0
KEY = KeyName("f", "k")


def version(number: int = 1, *, key: KeyName = KEY, **changes: Any) -> KeyVersion:
    """A version that has been signing for a day, and has no end."""
    made = key_version(
        key=key, number=number, cka_id=b"", spki=b"", kid=b"", thumbprint="", activate_at=NOW - DAY
    )
    return replace(made, **changes)


def read(*versions: KeyVersion, waiting: tuple[Waiting, ...] = ()) -> dict[str, Any]:
    """What is read of these keys: of facility f in group g, of another facility in none."""
    facility = SimpleNamespace(terms=SimpleNamespace(group="g", priority="high"))
    policy = SimpleNamespace(facilities={"f": facility}, sha256="00", terms_of=lambda _: None)
    pool = SimpleNamespace(pin_latched=False, waiting=lambda: waiting)
    worker = WorkerStatus("t", 1, "serving", 1, 0, "")
    pools = {"t": pool, "u": pool}
    hsm = SimpleNamespace(
        pools=pools,
        status=lambda: [worker, worker],
        away=lambda: {"u": "gone"},
        breakers_open=lambda: ["t"],
    )
    snapshot = Snapshot(cast(Any, policy), KeyIndex(versions))
    found = readings(snapshot, cast(Hsm, hsm), {}, now=NOW, monotonic=NOW)
    keys = KeyReadings(Usage())(snapshot, ["t"], NOW, NOW)
    return {name: dict(values) for name, values in {**found, **keys}.items()}


def end(*versions: KeyVersion) -> float | None:
    """When the keys of group g end."""
    ends = read(*versions)["signer_key_expiry_timestamp_seconds"]
    return cast(float | None, ends.get(("g",)))


def ended(*versions: KeyVersion) -> int:
    """How many keys of group g the clock has ended."""
    return cast(int, read(*versions)["signer_keys_ended"].get(("g",), 0))


def test_states_without_a_worker_are_zero_and_not_absent() -> None:
    workers = read()["signer_workers"]
    assert workers["t", "serving"] == 2
    others = {pair: count for pair, count in workers.items() if pair != ("t", "serving")}
    assert set(others.values()) == {0}
    assert ("u", "serving") in others


def test_classes_in_which_nothing_waits_are_zero_and_have_no_oldest() -> None:
    told = read(waiting=(Waiting("f", 3, NOW - 5),))
    assert told["signer_queue_items"] == {("high",): 6, ("normal",): 0, ("low",): 0}
    assert told["signer_queue_oldest_timestamp_seconds"] == {("high",): NOW - 5}


def test_a_key_without_an_end_has_none() -> None:
    assert end(version()) is None
    assert end() is None


@pytest.mark.parametrize("field", ["sign_until", "deactivate_at"])
def test_a_key_ends_with_its_last_version(field: str) -> None:
    soon = version(**dict[str, Any]({field: NOW + DAY}))
    assert end(soon) == NOW + DAY
    assert end(soon, version(2, sign_until=NOW + 9 * DAY)) == NOW + 9 * DAY
    assert end(soon, version(2)) is None


def test_a_version_that_is_to_follow_counts_and_one_that_waits_to_be_told_does_not() -> None:
    soon = version(sign_until=NOW + DAY)
    assert end(soon, version(2, activate_at=NOW + DAY / 2, sign_until=NOW + 9 * DAY)) > NOW + DAY  # type: ignore[operator]
    for waits in (
        version(2, activate_at=None),
        version(2, state=KeyState.PRE_ACTIVE),
        version(2, state=KeyState.SUSPENDED),
        version(2, state=KeyState.COMPROMISED),
    ):
        assert end(soon, waits) == NOW + DAY


def test_a_key_that_the_clock_has_ended_is_counted_and_hides_no_other() -> None:
    over, other = version(sign_until=NOW - DAY), KeyName("f", "other")
    assert (ended(over), end(over)) == (1, None)
    two = over, version(key=other, sign_until=NOW + DAY)
    assert (ended(*two), end(*two)) == (1, NOW + DAY)
    assert ended(over, version(key=other, sign_until=NOW)) == 2
    assert (ended(over, version(2)), end(over, version(2))) == (0, None)


def test_a_group_of_which_no_key_has_ended_is_zero_and_not_absent() -> None:
    assert read(version())["signer_keys_ended"] == {("g",): 0}


def test_keys_of_a_token_that_does_not_serve_are_away() -> None:
    here, there = version(), version(key=KeyName("f", "other"), token="u")
    told = read(here, there, version(2, state=KeyState.SUSPENDED, token="u"))
    assert told["signer_keys_away"] == {(): 1}
    assert told["signer_token_serving"] == {("t",): 1, ("u",): 0}
    assert told["signer_breaker_open"] == {("t",): 1, ("u",): 0}
    both = replace(there, other_placements=(Placement("t", b"copy"),))
    assert read(here, both)["signer_keys_away"] == {(): 0}


def test_a_key_that_its_officers_have_ended_is_not_told() -> None:
    for over in (
        version(deactivate_at=NOW - DAY),
        version(deactivate_at=NOW - DAY, sign_until=NOW + DAY),
        version(state=KeyState.DESTROY_SCHEDULED, sign_until=NOW - DAY),
    ):
        assert (ended(over), end(over)) == (0, None)


def test_keys_are_not_looked_through_at_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[KeyIndex] = []
    by_key = KeyIndex.by_key

    def counted(index: KeyIndex) -> Any:
        looked.append(index)
        return by_key(index)

    monkeypatch.setattr(KeyIndex, "by_key", counted)
    policy = cast(Any, SimpleNamespace(facilities={}, terms_of=lambda _: None))
    first = Snapshot(policy, KeyIndex([version(sign_until=NOW + 5)]))
    second = Snapshot(policy, KeyIndex([version(), version(2)]))
    keys = KeyReadings(Usage())

    def read_at(snapshot: Snapshot, seconds: float) -> tuple[int, Any]:
        found = keys(snapshot, ["t"], NOW + seconds, 7.0 + seconds)
        return len(looked), found["signer_key_versions"]

    assert read_at(first, 0) == (1, {("ACTIVE",): 1})
    assert read_at(first, KEYS_SECONDS - 0.1) == (1, {("ACTIVE",): 1})
    assert read_at(first, KEYS_SECONDS) == (2, {("DEACTIVATED",): 1})  # the clock is seen
    assert read_at(second, KEYS_SECONDS + KEYS_CHANGED_SECONDS - 0.1)[0] == 2
    assert read_at(second, KEYS_SECONDS + KEYS_CHANGED_SECONDS) == (3, {("ACTIVE",): 2})
    assert read_at(second, KEYS_SECONDS + KEYS_CHANGED_SECONDS + 1) == (3, {("ACTIVE",): 2})


def test_the_first_key_of_a_group_counts_and_others_have_no_group() -> None:
    told = read(
        version(sign_until=NOW + 9 * DAY),
        version(key=KeyName("f", "other"), sign_until=NOW + DAY),
        version(key=KeyName("elsewhere", "k"), sign_until=NOW + 2 * DAY),
    )["signer_key_expiry_timestamp_seconds"]
    assert told == {("g",): NOW + DAY, ("",): NOW + 2 * DAY}


def test_key_versions_are_counted_by_the_state_in_force() -> None:
    told = read(version(), version(2, activate_at=NOW + DAY), version(3, sign_until=NOW - 1))
    assert told["signer_key_versions"] == {("ACTIVE",): 1, ("PRE_ACTIVE",): 1, ("DEACTIVATED",): 1}
