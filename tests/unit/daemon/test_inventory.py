"""Registry and token compared: what is a difference, when it is looked for, and how it rests."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from signer.daemon.inventory import (
    DIFFERS_SECONDS,
    LOOK_AGAIN_SECONDS,
    MOST_NAMED,
    RESTS,
    RETRY_SECONDS,
    Inventory,
    compared,
)
from signer.errors import OperatorError
from signer.events import Bug, TokenDiffers
from signer.hsm.spec import HeldWrappingKey
from signer.model import (
    AUDIT_KEY,
    KeyName,
    KeyState,
    KeyVersion,
    TokenObject,
    WrapMechanism,
    WrappedKey,
    WrappingKey,
    inventory_digest,
)
from tests.stand_ins import Recorder, SetClock, key_version

AUDIT = key_version(key=AUDIT_KEY, cka_id=b"audit", token="t")


def version(name: str, **changes: Any) -> KeyVersion:
    return key_version(**({"key": KeyName("f", name), "cka_id": name.encode()} | changes))


def on_token(*versions: KeyVersion) -> list[TokenObject]:
    return [TokenObject(each.cka_id, each.name) for each in versions]


class Stage:
    """An inventory of one token, whose keys and registry the test sets."""

    def __init__(self, *versions: KeyVersion) -> None:
        self.pool = SimpleNamespace(inventory=b"", serving=1)
        self.served = SimpleNamespace(
            snapshot=SimpleNamespace(keys=list(versions), wrapping_keys=())
        )
        self.holds = on_token(*(v for v in versions if v.wrapped is None), AUDIT)
        self.wraps: dict[str, HeldWrappingKey] = {}
        self.opened, self.seconds = 0, 0.0
        self.failure: Exception | None = None
        self.meanwhile: Callable[[], object] = lambda: None
        self.clock, self.record = SetClock(), Recorder()
        self.comparing = Inventory(
            SimpleNamespace(pools={"t": self.pool}),  # type: ignore[arg-type]
            self.served,  # type: ignore[arg-type]
            AUDIT,
            open_list=self._open,
            events=self.record.events,
            clock=self.clock,
        )

    @contextmanager
    def _open(self, token: str) -> Iterator[Any]:
        assert token == "t"
        self.opened += 1
        if self.failure is not None:
            raise self.failure
        yield self

    def inventory(self, rest: Callable[[float], object]) -> list[TokenObject]:
        found = list(self.holds)
        self.meanwhile()
        rest(self.seconds)
        return found

    def wrapping_keys(self, ids: Sequence[str]) -> list[HeldWrappingKey]:
        return [self.wraps.get(identity, HeldWrappingKey(0)) for identity in ids]

    def compare(self) -> list[str]:
        self.comparing.compare()
        return self.comparing.differences

    @property
    def reported(self) -> list[list[str]]:
        return [list(event.differences) for event in self.record.of(TokenDiffers)]


@pytest.mark.parametrize("what", ["missing", "unknown", "twice"])
def test_a_difference_is_found_and_reported_once(what: str) -> None:
    stage = Stage(version("a"), version("b"))
    match what:
        case "missing":
            del stage.holds[0]
            expected = "does not hold the key of facilities/f/keys/a/versions/1"
        case "unknown":
            stage.holds.append(TokenObject(b"\xab", "a stranger"))
            expected = "CKA_ID ab, label 'a stranger'"
        case _:
            stage.holds.append(TokenObject(b"b", "another"))
            expected = f"two private keys with the CKA_ID {b'b'.hex()}"
    [line] = stage.compare()
    assert expected in line
    assert stage.reported == [[line]]
    assert stage.compare() == [line]
    assert (stage.opened, len(stage.reported)) == (1, 1)


def test_nothing_is_read_where_an_index_shows_what_the_registry_has() -> None:
    stage = Stage(version("a"), version("gone", state=KeyState.DESTROYED))
    stage.holds = on_token(version("a"), AUDIT)
    stage.pool.inventory = inventory_digest(stage.holds)
    assert stage.compare() == []
    assert stage.opened == 0
    stage.clock.forward(LOOK_AGAIN_SECONDS)
    assert stage.compare() == []
    assert stage.opened == 1, "an index says nothing of what happened since"


def test_a_token_is_compared_once_it_serves_and_then_every_day() -> None:
    stage = Stage(version("a"))
    stage.pool.serving = 0
    stage.compare()
    assert stage.opened == 0
    stage.pool.serving = 1
    for _ in range(3):
        stage.compare()
    assert stage.opened == 1
    del stage.holds[0]
    stage.clock.forward(LOOK_AGAIN_SECONDS - 1)
    assert stage.compare() == []
    stage.clock.forward(1)
    assert len(stage.compare()) == 1


def test_what_is_repaired_is_seen_within_the_hour() -> None:
    stage = Stage(version("a"))
    del stage.holds[0]
    assert len(stage.compare()) == 1
    stage.holds = on_token(version("a"), AUDIT)
    stage.clock.forward(DIFFERS_SECONDS - 1)
    assert len(stage.compare()) == 1
    assert stage.comparing.counts() == {"t": 1}
    stage.clock.forward(1)
    assert stage.compare() == []
    assert stage.comparing.counts() == {"t": 0}


def wrapped_stage(*, destroyed: bool = False) -> Stage:
    """A key that is wrapped by "w", which the token holds as it should."""
    key = WrappedKey(b"", b"", WrapMechanism.AES_KEY_WRAP_PAD, "w", ("t",))
    stage = Stage() if destroyed else Stage(version("a", wrapped=key))
    there = WrappingKey("w", "t", 1.0, destroyed)
    stage.served.snapshot.wrapping_keys = (there, WrappingKey("x", "u", 1.0))
    stage.wraps["w"] = HeldWrappingKey(not destroyed)
    return stage


@pytest.mark.parametrize(
    ("held", "destroyed", "expected"),
    [
        (HeldWrappingKey(0), False, "not hold the wrapping key w, so that 1 key version does not"),
        (HeldWrappingKey(2), False, "holds 2 keys with the CKA_ID"),
        (HeldWrappingKey(1, ("EXTRACTABLE", "DECRYPT")), False, "another EXTRACTABLE, DECRYPT"),
        (HeldWrappingKey(1), True, "the wrapping key w, which officers have destroyed"),
    ],
)
def test_a_wrapping_key_that_is_not_as_it_should_be_is_found(
    held: HeldWrappingKey, destroyed: bool, expected: str
) -> None:
    stage = wrapped_stage(destroyed=destroyed)
    assert stage.compare() == []
    stage.wraps["w"] = held
    stage.clock.forward(LOOK_AGAIN_SECONDS)
    [line] = stage.compare()
    assert line.startswith("token t ")
    assert expected in line
    assert stage.reported == [[line]]


def test_what_officers_destroy_after_the_comparison_is_no_difference() -> None:
    for destroyed in (False, True):
        stage = wrapped_stage(destroyed=destroyed)
        stage.wraps["w"] = HeldWrappingKey(destroyed)
        assert len(stage.compare()) == 1
        stage.served.snapshot.wrapping_keys = (WrappingKey("w", "t", 1.0, not destroyed),)
        assert stage.compare() == []


def test_wrapping_keys_are_looked_at_also_where_an_index_shows_all_others() -> None:
    stage = wrapped_stage()
    stage.pool.inventory = inventory_digest(stage.holds)
    stage.holds.append(TokenObject(b"new", "not in the index"))
    stage.wraps.clear()
    [line] = stage.compare()
    assert "wrapping key w" in line


def test_a_token_that_could_not_be_read_is_tried_again() -> None:
    stage = Stage(version("a"))
    stage.failure = OperatorError("it is away")
    assert stage.compare() == ["token t could not be compared with the registry: it is away"]
    assert stage.reported == [stage.compare()]
    stage.failure = None
    stage.clock.forward(RETRY_SECONDS)
    assert stage.compare() == []
    assert stage.opened == 2


def test_a_bug_does_not_repeat_all_the_time() -> None:
    stage = Stage(version("a"))
    stage.failure = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        stage.compare()
    assert stage.compare() == []
    assert (stage.opened, stage.record.of(Bug)) == (1, [])


def test_what_changes_while_a_token_is_read_is_no_difference() -> None:
    """An operation makes a key on the token first, and registers it when it is done."""
    stage = Stage(version("a"), version("ending"))
    stage.holds += on_token(version("new"))
    del stage.holds[1]

    def change() -> None:
        ended = version("ending", state=KeyState.DESTROYED)
        stage.served.snapshot.keys = [version("a"), ended, version("new"), version("later")]

    stage.meanwhile = change
    assert stage.compare() == []
    assert stage.reported == []


def test_a_difference_goes_when_the_registry_changes() -> None:
    stage = Stage(version("a"))
    stage.holds += on_token(version("new"))
    assert len(stage.compare()) == 1
    stage.served.snapshot.keys.append(version("new"))
    assert stage.compare() == []


def test_keys_of_other_tokens_and_destroyed_ones_are_not_expected() -> None:
    stage = Stage(version("a"))
    stage.served.snapshot.keys += [
        version("elsewhere", token="u"),
        version("gone", state=KeyState.DESTROYED),
    ]
    assert stage.compare() == []


def test_the_first_differences_are_named_and_the_rest_is_counted() -> None:
    stage = Stage()
    stage.holds += [TokenObject(b"%d" % number, "x" * 500) for number in range(MOST_NAMED + 7)]
    lines = stage.compare()
    assert len(lines) == MOST_NAMED + 1
    assert lines[-1] == "token t: 7 more differences"
    assert all(len(line) < 500 for line in lines)


def test_keys_without_an_id_are_not_the_same_key_twice() -> None:
    found = compared([TokenObject(b"", "one"), TokenObject(b"", "two")], [])
    assert not found.twice
    assert list(found.unknown) == [b""]


def test_a_comparison_rests_and_ends_with_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(version("a"))
    rests: list[float] = []
    monkeypatch.setattr(stage.comparing._closing, "wait", rests.append)
    stage.seconds = 0.5
    stage.compare()
    assert rests == [RESTS * 0.5]
    monkeypatch.undo()
    stage.comparing.close()
    stage.clock.forward(LOOK_AGAIN_SECONDS)
    stage.holds.clear()
    assert stage.compare() == [], "the comparison was not finished"
    assert stage.opened == 2
