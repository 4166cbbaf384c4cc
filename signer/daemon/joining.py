"""What a further appliance compares before it begins its log: the registry with another log.

The first standings of a log are taken as given. So somebody could let an appliance join on an
edited copy of the registry. The log of an appliance that was there before accounts for what is
in the registry, as it does at each start of that appliance.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from signer.audit.format.checkpoint import Checkpoint
from signer.audit.read.verify import verify_log
from signer.clock import Clock
from signer.daemon.accounts import Accounts
from signer.errors import OperatorError
from signer.events import Events
from signer.keys.registry import Registry, RegistryState
from signer.officers.change_check import ChangeFold
from signer.officers.keys_record import Joined
from signer.officers.kinds.base import shortened

SHOWN = 20  # of what is not accounted for


def check_registry(
    registry: Registry,
    state: RegistryState,
    directory: Path,
    origin: str,
    checkpoints: Iterable[Checkpoint],
    *,
    clock: Clock,
    needed: Mapping[str, int],
) -> Joined:
    """Raises OperatorError if a log does not account for a state of the registry.

    Returns what it was compared with.

    ``directory`` is that of the log, or of a copy; ``checkpoints`` are verified already.
    ``needed`` is the number of officers that each kind of operation needs.
    """
    report = verify_log(
        directory, origin, checkpoints, folds=[ChangeFold], beginning_elsewhere=True
    )
    changes = report.fold(ChangeFold)
    if broken := [text for text in report.problems if text not in changes.problems]:
        raise OperatorError(f"{directory} is not a whole log: {broken[0]}")
    if not changes.standings.deployment:
        raise OperatorError(f"{directory} is the log of an earlier version: start that daemon once")
    accounts = Accounts(
        registry,
        clock,
        Events(),
        standings=changes.standings,
        approvals=changes.approvals,
        needed=needed,
        development=changes.approvals.development,
        looked=report.time_us / 1_000_000,
    )
    judged = accounts.begin(state)
    if wrong := [*judged.refused, *judged.by_hand]:
        texts = shortened([f"  {text}" for text in wrong], "difference", SHOWN)
        head = f"the log of {origin} does not account for the registry; nothing was begun:"
        raise OperatorError("\n".join([head, *texts]))
    return Joined(origin, report.records, report.root)
