from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.key_index import KeyIndex
from signer.model import KeyName, KeyState, KeyVersion
from tests.stand_ins import key_version

A = KeyName("01-001", "records")


def make(key: KeyName = A, number: int = 1, activate_at: float | None = 10.0) -> KeyVersion:
    return key_version(
        key=key,
        number=number,
        cka_id=bytes(16),
        kid=bytes(8),
        thumbprint="x",
        activate_at=activate_at,
    )


times = st.one_of(st.none(), st.integers(0, 5).map(float))
histories = st.lists(st.tuples(st.sampled_from(KeyState), times, times), max_size=6).map(
    lambda rows: [
        replace(make(number=number, activate_at=at), state=state, sign_until=until)
        for number, (state, at, until) in enumerate(rows, 1)
    ]
)


@given(histories, st.integers(0, 6).map(float))
def test_the_primary_is_the_active_version_activated_last(
    versions: list[KeyVersion], now: float
) -> None:
    primary = KeyIndex(versions).primary(A, now)
    active = [v for v in versions if v.active(now)]
    assert (primary is None) == (not active)
    if primary is not None:
        assert primary in active
        assert primary.state is KeyState.ACTIVE
        assert primary.activate_at is not None
        assert primary.activate_at <= now
        assert not [
            v for v in active if (v.activate_at, v.number) > (primary.activate_at, primary.number)
        ]


@given(histories, st.randoms())
def test_the_order_of_rows_does_not_matter(versions: list[KeyVersion], random: object) -> None:
    shuffled = list(versions)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert KeyIndex(shuffled, 3) == KeyIndex(versions, 3)
    assert KeyIndex(shuffled).versions(A) == tuple(versions)


identifiers = st.text("abc-.", min_size=1, max_size=3).filter(
    lambda text: text[0].isalpha() and text[-1].isalpha()
)


@given(st.sets(st.builds(KeyName, identifiers, identifiers)), identifiers, st.integers(1, 4))
def test_pages_hold_every_name_once_and_in_order(
    keys: set[KeyName], facility: str, size: int
) -> None:
    index = KeyIndex(map(make, keys))
    for prefix in ("", f"facilities/{facility}/"):
        expected = sorted(str(key) for key in keys if str(key).startswith(prefix))
        seen: list[str] = []
        while page := index.names(prefix, seen[-1] if seen else "", size):
            assert len(page) <= size
            seen += map(str, page)
        assert seen == expected
        assert list(map(str, index.names(prefix))) == expected


def test_versions_are_found_by_number() -> None:
    first, second = make(), make(number=2)
    index = KeyIndex([second, first], 5)
    assert index.version(A, 2) is second
    assert index.version(A, 3) is None
    assert index.version(KeyName("x", "y"), 1) is None
    assert index.versions(KeyName("x", "y")) == ()
    assert (len(index), list(index), index.revision) == (2, [first, second], 5)


def test_an_index_equals_one_of_the_same_revision_and_versions() -> None:
    assert KeyIndex([make()], 1) == KeyIndex([make()], 1)
    assert KeyIndex([make()], 1) != KeyIndex([make()], 2)
    assert KeyIndex([make()], 1) != KeyIndex([make(number=2)], 1)
    assert KeyIndex() != 0


def test_two_versions_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="versions/1"):
        KeyIndex([make(), make()])


@given(
    st.dictionaries(st.tuples(st.sampled_from("abc"), st.integers(1, 3)), times),
    st.dictionaries(st.tuples(st.sampled_from("abc"), st.integers(1, 3)), times),
)
def test_an_index_brought_up_to_date_equals_one_built_from_scratch(
    before: dict[tuple[str, int], float | None], changed: dict[tuple[str, int], float | None]
) -> None:
    def versions(of: dict[tuple[str, int], float | None]) -> list[KeyVersion]:
        return [make(KeyName(facility, "k"), number, at) for (facility, number), at in of.items()]

    old = KeyIndex(versions(before), 4)
    updated = old.updated(versions(changed), 5)
    expected = KeyIndex(versions(before | changed), 5)
    assert updated == expected
    assert updated.names() == expected.names()
    assert updated.names("facilities/b/") == expected.names("facilities/b/")
    for name in expected.names():
        # In order of their numbers, which equality of mappings does not see.
        assert updated.versions(name) == expected.versions(name)
    assert old == KeyIndex(versions(before), 4)
