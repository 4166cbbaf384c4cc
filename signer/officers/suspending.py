"""Which suspensions are accounted for. Pure: values in, values out.

What is added is obeyed, also where no act accounts for it. What is lifted needs an approved
operation, about the very suspension that was in force. Between two looks at the registry a
suspension may have been lifted and set again, several times: each step of that is accounted for.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from signer.model import Suspension
from signer.officers.standing import FlagKey, key_of, since_of

Step = Callable[[FlagKey, Suspension | None], Suspension | None]
"""Returns a suspension as an act or operation leaves it; None: there is none."""


@dataclass(slots=True)
class SuspendedChanges:
    """How suspensions differ from what is known, by the number of the step that has made it.

    ``flags`` are those that are in force.
    """

    suspended: dict[int, list[Suspension]] = field(default_factory=dict)
    lifted: dict[int, list[Suspension]] = field(default_factory=dict)
    flags: list[Suspension] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    by_hand: list[str] = field(default_factory=list)

    def at(self, step: int) -> tuple[Sequence[Suspension], Sequence[Suspension]]:
        """Returns what a step has suspended, and what it has lifted."""
        return self.suspended.get(step, ()), self.lifted.get(step, ())


def judge_suspensions(
    known: Iterable[Suspension],
    now: Iterable[Suspension],
    unreadable: frozenset[FlagKey],
    steps: Sequence[Step],
    acted: Iterable[FlagKey],
) -> SuspendedChanges:
    """Returns what has become of the suspensions. Those that are ``unreadable`` now stay.

    What officers have suspended by acts, as ``acted`` says, is in force until an operation
    lifts it, whatever the registry has.
    """
    changes = SuspendedChanges()
    before = {key_of(flag): flag for flag in known}
    after = {key_of(flag): flag for flag in now}
    for key in sorted({*before, *after, *acted}):
        old, new = before.get(key), after.get(key)
        if old is not None and (key in unreadable or _since(old) == _since(new)):
            changes.flags.append(old if new is None else new)
        elif _follow(changes, key, old, new, steps):
            changes.flags += [] if new is None else [new]
        elif new is not None and since_of(new) > _since(old):
            changes.flags.append(new)
            changes.suspended.setdefault(len(steps), []).append(new)
            changes.by_hand.append(f"{new} was suspended in the registry by hand")
        elif (set_by := _set(changes, key, old, new, steps)) is not None:
            changes.flags.append(set_by)
            changes.refused.append(
                f"an officer has set the suspension of {set_by}, and the registry does not have"
                " it: it stays in force; suspend it again, then have officers resume it"
            )
        elif old is not None:
            changes.flags.append(old)
            changes.refused.append(
                f"no operation has lifted the suspension of {old}: it stays in force; suspend it"
                " again, then have officers resume it"
                if new is None
                else f"the time of the suspension of {old} was changed"
            )
    return changes


def _follow(
    changes: SuspendedChanges,
    key: FlagKey,
    old: Suspension | None,
    new: Suspension | None,
    steps: Sequence[Step],
) -> bool:
    """Adds the steps that lead from one suspension to another; returns whether they do."""
    at, made = old, list[tuple[dict[int, list[Suspension]], int, Suspension]]()
    for number, step in enumerate(steps):
        left = step(key, at)
        if left is None and at is not None:
            made.append((changes.lifted, number, at))
        elif left is not None and _since(left) > _since(at):
            made.append((changes.suspended, number, left))
        else:
            continue
        at = left
    if _since(at) != _since(new):
        return False
    for group, number, flag in made:
        group.setdefault(number, []).append(flag)
    return True


def _set(
    changes: SuspendedChanges,
    key: FlagKey,
    old: Suspension | None,
    new: Suspension | None,
    steps: Sequence[Step],
) -> Suspension | None:
    """Adds the steps that have set a suspension which the registry lacks; returns it, if any."""
    if new is not None:
        return None
    at = old
    for step in steps:
        at = step(key, at)
    if at is None or _since(at) <= _since(old) or not _follow(changes, key, old, at, steps):
        return None
    return at


def _since(flag: Suspension | None) -> int:
    """Returns since when a suspension is in force, before all times without one."""
    return -(1 << 63) if flag is None else since_of(flag)
