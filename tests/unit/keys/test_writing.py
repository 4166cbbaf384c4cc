import hashlib
import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from signer.errors import OperatorError
from signer.key_index import KeyIndex
from signer.keys.registry import Registry
from signer.keys.writing import Change, ChangedMeanwhileError
from signer.model import KeyName, KeyState, KeyVersion, Scope, Suspension
from tests.unit.keys.made import make


def change(registry: Registry, before: KeyVersion, **values: Any) -> KeyVersion:
    after = replace(before, **values)
    with registry.writing() as write:
        write.change([Change(before, after)])
    return after


def test_every_write_counts_the_revision_up(registry: Registry) -> None:
    assert registry.revision() == 0
    registry.add_version(make())
    change(registry, make(), kid=b"kid")
    with registry.writing() as write:
        write.set_officers({})
    assert registry.revision() == 3


def test_a_change_of_what_was_not_counted_has_a_later_revision(registry: Registry) -> None:
    """Officers name the revision that they saw: no two states of a version may share one."""
    with registry.writing(counts=False) as write:
        write.add_versions([make()])
    [made] = registry.versions(make().key)
    change(registry, made, kid=b"kid")
    [changed] = registry.versions(make().key)
    assert 0 < made.revision < changed.revision == registry.revision()


def test_what_daemons_do_not_follow_is_not_counted(registry: Registry) -> None:
    with registry.writing(counts=False) as write:
        stored = write.store(b"plan")
    assert registry.revision() == 0
    assert registry.document(stored) == b"plan"


MOVES: dict[str, Any] = {
    "state": KeyState.SUSPENDED,
    "certificate": b"der",
    "kid": b"kid",
    "activate_at": None,
    "sign_until": 9.5,
    "deactivate_at": 8.5,
    "destroy_at": 7.5,
    "came_from": KeyState.COMPROMISED,
    "request": "PEM",
}


@pytest.mark.parametrize("name", MOVES)
def test_a_change_is_written_whole_and_alone(registry: Registry, name: str) -> None:
    with registry.writing() as write:
        write.add_versions([make(), make(number=2)])
    changed = change(registry, make(), **{name: MOVES[name]})
    assert registry.snapshot() == KeyIndex([changed, make(number=2)], 2)
    assert change(registry, changed, **{name: getattr(make(), name)}) == make()
    assert registry.snapshot() == KeyIndex([make(), make(number=2)], 3)


@pytest.mark.parametrize("name", MOVES)
def test_a_change_of_what_somebody_else_has_changed_writes_nothing(
    registry: Registry, name: str
) -> None:
    registry.add_version(make())
    changed = change(registry, make(), **{name: MOVES[name]})
    before = registry.state()

    def write_much() -> None:
        with registry.writing() as write:
            write.add_versions([make("new")])
            write.set_officers({"spiffe://o": b"der"})
            write.suspend(Suspension(Scope.EVERYTHING, "", 1.0, "o", "why"))
            write.put_policy(b"policy")
            write.change([Change(make(), replace(make(), state=KeyState.DEACTIVATED))])

    with pytest.raises(OperatorError, match="versions/1 has changed meanwhile"):
        write_much()
    assert registry.state() == before
    assert registry.document(hashlib.sha256(b"policy").hexdigest()) is None
    assert registry.versions(make().key) == [changed]


def test_a_change_of_no_version_is_refused(registry: Registry) -> None:
    with pytest.raises(OperatorError, match="or no longer exists"):
        change(registry, make(), kid=b"kid")
    assert registry.revision() == 0


def test_after_a_refusal_the_transaction_goes_on_without_it(registry: Registry) -> None:
    registry.add_version(make())
    with registry.writing() as write:
        with pytest.raises(OperatorError, match="was not added"):
            write.add_versions([make("refused"), make()])
        with pytest.raises(OperatorError, match="has changed meanwhile"):
            write.change(
                [
                    Change(make(), replace(make(), kid=b"refused")),
                    Change(make(number=2), make(number=2)),
                ]
            )
        write.add_versions([make("added")])
    assert registry.snapshot() == KeyIndex([make(), make("added")], 2)


def test_officers_take_the_place_of_all_others(registry: Registry) -> None:
    assert registry.state().officers == {}
    for officers in ({"b": b"\x00B", "a": b"A\xff"}, {"c": b"C", "a": b"new"}, {}):
        with registry.writing() as write:
            write.set_officers(officers)
        assert registry.state().officers == officers


def test_suspensions_are_renewed_and_lifted_as_they_are(registry: Registry) -> None:
    flags = [
        Suspension(Scope.GROUP, "a_b", 1.5, "officer", "why"),
        Suspension(Scope.GROUP, "a-b", 2.5, "officer", "why"),
        Suspension(Scope.FACILITY, "a-b", 3.5, "officer", "why"),
        Suspension(Scope.EVERYTHING, "", 4.5, "officer", "why"),
    ]
    with registry.writing() as write:
        for flag in flags:
            write.suspend(flag._replace(since=0.5, officer="early", reason="another"))
            write.suspend(flag)
    # By scope and name, byte by byte, whatever the database's language.
    assert registry.state().suspensions == (flags[3], flags[2], flags[1], flags[0])
    with registry.writing() as write:
        write.lift(flags[1])
        write.lift(flags[3])
    assert registry.state().suspensions == (flags[2], flags[0])
    old = flags[0]._replace(since=0.5)  # it was suspended anew since
    with pytest.raises(ChangedMeanwhileError, match="again"), registry.writing() as write:
        write.lift(old)
    assert registry.suspensions() == (flags[2], flags[0])


@pytest.mark.parametrize(
    ("scope", "name", "message"),
    [
        (Scope.GROUP, "north", "^group north was suspended again, or is no longer suspended$"),
        (Scope.EVERYTHING, "", "^everything was suspended again, or is no longer suspended$"),
    ],
)
def test_what_is_not_suspended_is_not_lifted(
    registry: Registry, scope: Scope, name: str, message: str
) -> None:
    other = Suspension(Scope.FACILITY, "north", 1.0, "officer", "why")
    with registry.writing() as write:
        write.suspend(other)
    with pytest.raises(OperatorError, match=message), registry.writing() as write:
        write.lift(other._replace(scope=scope, name=name))
    assert (registry.state().suspensions, registry.revision()) == ((other,), 1)


def test_documents_are_kept_under_their_hash(registry: Registry) -> None:
    content = b"\x00policy\xff"
    with registry.writing() as write:
        assert write.store(content) == hashlib.sha256(content).hexdigest()
    with registry.writing() as write:
        assert write.store(content) == hashlib.sha256(content).hexdigest()
    assert registry.document(hashlib.sha256(content).hexdigest()) == content
    assert registry.document("0" * 64) is None
    assert registry.state().policy is None


def test_the_policy_in_force_is_the_last_one_put(registry: Registry) -> None:
    for text in (b"first", b"second", b"first"):
        with registry.writing() as write:
            write.put_policy(text)
        policy = registry.state().policy
        assert policy == hashlib.sha256(text).hexdigest()
        assert registry.document(policy) == text


_counter = itertools.count()
_names = map("f{}".format, itertools.count())
_steps = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from(KeyState), st.booleans()), max_size=12
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(_steps)
def test_what_is_new_since_an_index_makes_the_whole(
    registry: Registry, steps: list[tuple[int, KeyState, bool]]
) -> None:
    # The registry is one for all examples; each has a facility of its own.
    facility = next(_names)
    expected: dict[int, Any] = {}
    index = old = registry.snapshot()
    for number, state, looks in steps:
        with registry.writing() as write:
            if version := expected.get(number):
                expected[number] = replace(version, state=state, request=f"at {next(_counter)}")
                write.change([Change(version, expected[number])])
            else:
                expected[number] = replace(make(facility, number + 1), state=state)
                write.add_versions([expected[number]])
        if looks:
            index = registry.state(since=index).keys
            assert index == registry.snapshot()
    for since in (index, old, KeyIndex()):
        assert registry.state(since=since) == registry.state()
    assert {v.number - 1: v for v in registry.versions(KeyName(facility, "records"))} == expected
