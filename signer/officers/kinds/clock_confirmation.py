"""The kind clock: officers confirm the machine's clock, and say which times were wrong.

It is the only kind that is signed and executed while the clock is in doubt.
"""

from pydantic import Field

from signer.clock import JUMP_SECONDS
from signer.officers.approval import CLOCK, MAX_NUMBER
from signer.officers.kinds.base import Details, Effects, OperationKind, Work
from signer.officers.kinds.operation_context import OperationContext, OperationError, utc

KIND = CLOCK


class ConfirmClock(Details):
    """``ahead``: how many seconds the machine's clock is ahead of the appliance's time.

    It is behind if negative. ``wrong_from`` is the number of the first record of the log whose
    time is wrong, as are those after it; 0: no time is wrong. ``right_until`` is the time of the
    record before it, in microseconds since the epoch. ``follows`` is the number of the
    record with which the clock was confirmed before, 0 if it never was; -1 in what earlier
    versions asked for. So an approval counts once.
    """

    ahead: int = 0
    wrong_from: int = Field(0, ge=0, lt=MAX_NUMBER)
    right_until: int = Field(0, ge=0, lt=MAX_NUMBER)
    follows: int = Field(-1, ge=-1, lt=MAX_NUMBER)


class ConfirmClockKind(OperationKind[ConfirmClock]):
    """Puts an end to the doubt about the machine's clock."""

    name = KIND
    details = ConfirmClock

    def complete(self, details: ConfirmClock, context: OperationContext) -> ConfirmClock:
        return ConfirmClock(
            ahead=_ahead(context),
            wrong_from=details.wrong_from,
            right_until=_right_until(details, context),
            follows=context.clock_confirmed,
        )

    def problems(self, details: ConfirmClock, context: OperationContext) -> list[str]:
        clock = context.clock
        if not clock.doubt:  # while executing: an interrupted attempt has ended it
            nothing = "the clock is not in doubt: there is nothing to confirm"
            return [] if context.executing else [nothing]
        problems = []
        if abs(details.ahead - _ahead(context)) > JUMP_SECONDS:
            problems.append("the clock has moved again since this was proposed: propose it anew")
        if details.right_until != _right_until(details, context):
            problems.append("right_until: is filled in by the appliance")
        if max(details.follows, 0) != context.clock_confirmed:
            problems.append("the clock has been confirmed since this was proposed: propose it anew")
        if not details.wrong_from and details.ahead < 0:
            problems.append(
                "the clock is behind the audit log: name the first record whose time is wrong, "
                "or correct the clock"
            )
        if details.wrong_from and clock.machine * 1_000_000 < details.right_until:
            problems.append(
                f"the clock says {utc(clock.machine)}, which is before record "
                f"{details.wrong_from - 1}, whose time is to be right"
            )
        return problems

    def difference(self, details: ConfirmClock, context: OperationContext) -> list[str]:
        clock = context.clock
        direction = "ahead of" if details.ahead > 0 else "behind"
        lines = [
            f"~ the machine's clock is believed: it says {utc(clock.machine)}",
            f"  that is {abs(details.ahead)} s {direction} the appliance's time, {utc(clock.now)}",
        ]
        if details.wrong_from:
            until = utc(details.right_until / 1_000_000)
            lines += [
                f"! the times of record {details.wrong_from} and all after it are wrong",
                f"  the last right time is that of record {details.wrong_from - 1}, {until}",
            ]
        return lines

    def execute(self, details: ConfirmClock, work: Work) -> Effects:
        work.accept_clock(details.wrong_from, details.right_until)
        return Effects(result={"time": utc(work.clock.now())})


def _ahead(context: OperationContext) -> int:
    return round(context.clock.machine - context.clock.now)


def _right_until(details: ConfirmClock, context: OperationContext) -> int:
    """Returns the time of the last record whose time is right; raises OperationError."""
    if not details.wrong_from:
        return 0
    try:
        return context.record_time(details.wrong_from - 1)
    except LookupError:
        raise OperationError(
            f"wrong_from: {details.wrong_from} is not the number of a record of the audit log"
            " here after the first one: `signer audit show` lists them"
        ) from None
