"""Which placements of keys are accounted for. Pure: values in, values out.

A placement is where else a version's private key is. What the registry has of them is used only
where an approved operation names that very placement; without one, the version signs where it
did before. A placement that is gone is not used any more, with or without an operation.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from signer.model import KeyIndex, KeyName, KeyVersion, Placement
from signer.officers.permits import ADD_PLACEMENT, REMOVE_PLACEMENT
from signer.officers.standing import NamedPlacement


@dataclass(slots=True)
class PlacedChanges:
    """How placements differ from what is known, by the number of the step that has made it.

    ``unaccounted`` are those that nothing accounts for, by their versions.
    """

    placed: dict[int, list[NamedPlacement]] = field(default_factory=dict)
    removed: dict[int, list[NamedPlacement]] = field(default_factory=dict)
    unaccounted: dict[tuple[KeyName, int], set[Placement]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    by_hand: list[str] = field(default_factory=list)

    def at(self, step: int) -> tuple[Sequence[NamedPlacement], Sequence[NamedPlacement]]:
        """Returns what a step has placed, and what it has removed."""
        return self.placed.get(step, ()), self.removed.get(step, ())

    def served(self, keys: KeyIndex) -> KeyIndex:
        """Returns the versions without placements that are not accounted for."""
        bare = [
            replace(row, other_placements=tuple(p for p in row.other_placements if p not in these))
            for name, these in self.unaccounted.items()
            if (row := keys.version(*name)) is not None
        ]
        return keys.updated(bare, keys.revision) if bare else keys


def judge_placements(
    changed: Iterable[KeyVersion],
    known: Callable[[KeyVersion], Collection[Placement]],
    steps: Sequence[Callable[[str, str, Placement], bool]],
) -> PlacedChanges:
    """Returns what has become of the placements of versions that may have changed.

    ``known`` returns those of a version that are accounted for. A step takes the kind that adds
    or removes, the name of a version and a placement, and returns whether it has done that.
    """
    changes = PlacedChanges()
    for version in changed:
        name, before = version.name, known(version)
        for placement in version.other_placements:
            if placement in before:
                continue
            number = _step(steps, ADD_PLACEMENT, name, placement)
            if number < len(steps):
                changes.placed.setdefault(number, []).append((name, placement))
                continue
            changes.unaccounted.setdefault((version.key, version.number), set()).add(placement)
            changes.refused.append(
                f"{name}: no operation accounts for its placement on token {placement.token}"
            )
        for placement in sorted(set(before) - set(version.other_placements)):
            number = _step(steps, REMOVE_PLACEMENT, name, placement)
            changes.removed.setdefault(number, []).append((name, placement))
            if number == len(steps):
                changes.by_hand.append(
                    f"{name} was taken from token {placement.token} in the registry by hand"
                )
    return changes


def _step(
    steps: Sequence[Callable[[str, str, Placement], bool]],
    what: str,
    version: str,
    placement: Placement,
) -> int:
    """Returns the number of the step that has done it, one after the last without one."""
    for number, step in enumerate(steps):
        if step(what, version, placement):
            return number
    return len(steps)
