"""How a version came from what is known of it to what the registry has. Pure.

Between two looks at the registry a version may have gone several steps. A way is those that lead
from one standing to the other; without one, nothing accounts for the version.
"""

from collections.abc import Sequence
from typing import NamedTuple

from signer.model import KeyVersion
from signer.officers.keys_record import VersionRow
from signer.officers.permits import Permit
from signer.officers.standing import Standing, standing_of
from signer.officers.steps import AccountStep, ActStep, OperationStep

MOST_WAYS = 64  # that one version may have gone, as far as they are followed

_Path = tuple[tuple[int, Standing], ...]  # numbers of steps, and the standings after them
_Rows = list[tuple[int, VersionRow]]


class Explained(NamedTuple):
    """What accounts for a version: ``rows`` are to be recorded, by the numbers of their steps.

    ``by_hand`` says that somebody has stopped it in the registry. ``stopped`` is what officers
    have stopped, though the registry has something else: then it is not ``accounted``.
    """

    accounted: bool
    rows: Sequence[tuple[int, VersionRow]] = ()
    by_hand: str = ""
    stopped: Standing | None = None


def explain(
    version: KeyVersion, standing: Standing | None, steps: Sequence[AccountStep]
) -> Explained:
    """Returns what has led to a version; ``standing`` is what is known of it."""
    now = standing_of(version)
    if standing is not None and not now.same_pair(standing):
        return Explained(accounted=False)
    here: _Rows = [(len(steps), VersionRow(version.name, version.cka_id, now))]
    acts = _acts_on(version, standing, steps)
    unmoved = standing is not None and now.same(standing)
    paths = [] if unmoved and not acts else _paths(standing, now, version, acts, steps)
    stopped = any(number in acts for _, path in paths for number, _ in path)
    if standing is not None and unmoved and not stopped:
        # The revision is the one that officers see, and then approve.
        return Explained(accounted=True, rows=here if now.revision > standing.revision else ())
    # The longest first: it may have come back to a state. What acts have stopped they have stopped
    # by themselves, whatever rotations could have done before.
    for row, path in paths if acts else reversed(paths):
        if path and row is not None and row.same(now):
            later = here if 0 <= row.revision < now.revision else []
            return Explained(accounted=True, rows=_rows(path, version, steps) + later)
    for row, path in paths:
        if row is not None and now.only_stops(row):
            text = f"{version.name} was stopped in the registry by hand: it is {version.state}"
            return Explained(accounted=True, rows=_rows(path, version, steps) + here, by_hand=text)
    if not stopped:
        return Explained(accounted=False)
    longest = max((path for _, path in paths), key=len)
    rows = [(number, VersionRow(version.name, version.cka_id, after)) for number, after in longest]
    return Explained(accounted=False, rows=rows, stopped=longest[-1][1])


def _acts_on(
    version: KeyVersion, standing: Standing | None, steps: Sequence[AccountStep]
) -> frozenset[int]:
    """Returns the numbers of the acts that have come since the standing of a version.

    What they stop is stopped whatever the registry has now. A version that is not known may
    have been made after them.
    """
    if standing is None:
        return frozenset()
    return frozenset(
        number
        for number, step in enumerate(steps)
        if isinstance(step, ActStep) and step.revision > standing.revision and step.names(version)
    )


def _paths(
    before: Standing | None,
    now: Standing,
    version: KeyVersion,
    acts: frozenset[int],
    steps: Sequence[AccountStep],
) -> list[tuple[Standing | None, _Path]]:
    """Returns the ways that a version may have gone; the last one ends in ``now`` if any does.

    Of an operation or act a change has a revision of its own, after those before it. Every
    way has all of the ``acts`` that can have stopped the version there.
    """
    paths: list[tuple[Standing | None, _Path]] = [(before, ())]
    if before is not None and now.revision <= before.revision and not acts:
        return paths
    tried: dict[str, int] = {}  # by an operation that comes again: the ways that it has tried
    for number, step in enumerate(steps):
        if number in acts:
            paths = [
                next(((a, (*path, (number, a))) for a in step.ways(row, version)), (row, path))
                for row, path in paths
            ]
            tried.clear()
            continue
        identity = step.stored.id if isinstance(step, OperationStep) else ""
        begins, ends = tried.get(identity, 0), len(paths)
        for row, path in paths[begins:]:
            for after in step.ways(row, version):
                if len(paths) < MOST_WAYS:
                    paths.append((after, (*path, (number, after))))
                exact = after.same(now) and after.revision in (-1, now.revision)
                if exact and number > max(acts, default=-1):
                    return [(after, (*path, (number, after)))]
        if identity:
            tried[identity] = ends
    return paths


def _rows(path: _Path, version: KeyVersion, steps: Sequence[AccountStep]) -> _Rows:
    """Returns what was done to a version on a way, the last step first."""
    rows: _Rows = []
    latest = version.revision
    following: Permit | None = None
    for number, after in reversed(path):
        step = steps[number]
        seen = None if following is None else following.seen(version.name)
        if not 0 <= after.revision <= latest:  # the row of then is not in the registry
            after = after._replace(revision=latest if seen is None else seen)  # noqa: PLW2901
        rows.append((number, VersionRow(version.name, version.cka_id, after)))
        latest = max(after.revision - 1, 0)
        following = step.permit if isinstance(step, OperationStep) else None
    return rows
