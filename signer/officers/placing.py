"""Which placements of keys are accounted for. Pure: values in, values out.

A placement is where else a version's private key is. What the registry has of them is used only
where an approved operation names that very placement; without one, the version signs where it
did before. A placement that is gone is not used any more, with or without an operation.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from signer.key_index import KeyIndex
from signer.model import KeyName, KeyVersion, Placement
from signer.officers.permits import REMOVE_PLACEMENT
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


class Placing(NamedTuple):
    """What an operation does to the placements of a version: the kind that does, and which one.

    ``seen`` is the revision at which officers saw the version, None if they did not see it.
    ``proven``: what it adds, the version's key has signed there.
    """

    kind: str
    placement: Placement
    ended: bool
    seen: int | None = None
    proven: bool = True


PlacingStep = Callable[[KeyVersion], Placing | None]


def judge_placements(
    changed: Iterable[KeyVersion],
    known: Callable[[KeyVersion], Collection[Placement]],
    revision: Callable[[KeyVersion], int],
    steps: Sequence[PlacingStep],
) -> PlacedChanges:
    """Returns what has become of the placements of versions that may have changed.

    ``known`` returns those of a version that are accounted for, ``revision`` the one at which the
    version is known: an operation about an earlier one was refused, or is in the log. The steps
    are followed in their order, and each is recorded: what one has added, a later one may have
    removed, and neither counts again. One that has not ended has perhaps done nothing yet; one
    that could not prove what it was to add, does not account for it.
    """
    changes = PlacedChanges()
    for version in changed:
        name, now = version.name, frozenset(version.other_placements)
        at = set(known(version))
        for number, step in enumerate(steps):
            if (done := step(version)) is None:
                continue
            if done.seen is not None and done.seen < revision(version):
                continue
            removes, placement = done.kind == REMOVE_PLACEMENT, done.placement
            if not (removes or done.proven):
                continue
            if (placement in at) == removes and (done.ended or (placement in now) != removes):
                group = changes.removed if removes else changes.placed
                group.setdefault(number, []).append((name, placement))
                at ^= {placement}
        for placement in sorted(now - at):
            changes.unaccounted.setdefault((version.key, version.number), set()).add(placement)
            changes.refused.append(
                f"{name}: no operation accounts for its placement on token {placement.token}"
            )
        for placement in sorted(at - now):
            changes.removed.setdefault(len(steps), []).append((name, placement))
            changes.by_hand.append(
                f"{name} was taken from token {placement.token} in the registry by hand"
            )
    return changes
