"""Placements: where else a version's private key is."""

from dataclasses import replace

import pytest

from signer.errors import OperatorError
from signer.keys.registry import Registry
from signer.keys.writing import ChangedMeanwhileError
from signer.model import KeyVersion, Placement
from tests.unit.keys.made import make

OTHER = Placement("u", b"elsewhere")


def place(registry: Registry, version: KeyVersion, placement: Placement = OTHER) -> None:
    with registry.writing() as write:
        write.place(version, placement)


def test_a_version_names_where_its_key_is() -> None:
    version = replace(make(), other_placements=(OTHER,))
    assert version.placements == (Placement(version.token, version.cka_id), OTHER)
    assert version.cka_id_on(version.token) == version.cka_id
    assert version.cka_id_on("u") == b"elsewhere"
    assert version.cka_id_on("v") is None


def test_a_placement_is_read_with_its_version_and_alone_when_it_is_new(registry: Registry) -> None:
    first, second = make(), make("other")
    for version in (first, second):
        registry.add_version(version)
    before = registry.snapshot()
    place(registry, first)
    placed = replace(first, other_placements=(OTHER,))
    after = registry.state(before).keys
    assert after == registry.snapshot()
    assert list(after.changed_since(before)) == [placed]
    assert registry.versions(first.key) == [placed]
    state, page = registry.state_and_page(before, 0, 9)
    assert (state.keys, list(page.versions)) == (after, [placed, second])
    revision = after.version(first.key, first.number)
    assert revision is not None
    # Its own revision does not change: approvals that name it still hold.
    assert revision.revision == before.version(first.key, first.number).revision  # type: ignore[union-attr]


def test_a_removed_placement_is_noticed_and_may_come_back(registry: Registry) -> None:
    registry.add_version(make())
    place(registry, make())
    with_it = registry.snapshot()
    with registry.writing() as write:
        write.remove_placement(make(), OTHER)
    without = registry.state(with_it).keys
    assert list(without.changed_since(with_it)) == [make()]
    with (
        pytest.raises(ChangedMeanwhileError, match="no longer on token u"),
        registry.writing() as w,
    ):
        w.remove_placement(make(), OTHER)
    place(registry, make(), Placement("u", b"again"))
    [version] = registry.state(without).keys
    assert version.other_placements == (Placement("u", b"again"),)


@pytest.mark.parametrize(
    ("version", "placement"),
    [
        (make(), Placement("u", b"more")),
        (make(), Placement(make().token, b"more")),
        (make("other"), OTHER),
        (make("other"), Placement(make().token, make().cka_id)),
    ],
    ids=["token", "its own token", "another's place", "another's key"],
)
def test_a_place_that_is_taken_is_refused(
    registry: Registry, version: KeyVersion, placement: Placement
) -> None:
    registry.add_version(make())
    registry.add_version(make("other"))
    place(registry, make())
    before = registry.snapshot()
    with pytest.raises(OperatorError, match=f"{version.name} was not placed on token"):
        place(registry, version, placement)

    assert not list(registry.state(before).keys.changed_since(before))


def test_versions_are_added_with_their_placements(registry: Registry) -> None:
    version = replace(make(), other_placements=(OTHER, Placement("v", b"v")))
    registry.add_version(version)
    assert registry.versions(version.key) == [version]


def test_of_a_version_that_is_gone_nothing_is_placed(registry: Registry) -> None:
    with pytest.raises(ChangedMeanwhileError, match="no longer in the registry"):
        place(registry, make())
