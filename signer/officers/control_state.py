"""What officers have put in force, and how a snapshot of the log says it."""

from collections.abc import Mapping

from signer.audit.format.record import Record, RecordError, Value, number, octets
from signer.officers.operation_memory import OperationMemory, are_ids, ids_in
from signer.officers.record_checks import ProblemError, operation_id
from signer.officers.records import read_officers, rows_of


class ControlState:
    """The officers and the policy in force, and the operations under way.

    ``officers`` are certificates (DER) by principal, None before any are known;
    ``development``: policies need no approval; ``policy`` is the SHA-256 of the policy in
    force, empty while it is unknown; ``officers_since`` and ``policy_since`` are the registry's
    revisions that put them in force, -1 while unknown. ``clock_confirmed`` is the number of the
    CLOCK that has set the time last, 0 if none has. ``deployment`` is the id that operations
    must name, empty before the log's first baseline.
    """

    def __init__(self) -> None:
        self.officers: dict[str, bytes] | None = None
        self.development = False
        self.policy = b""
        self.officers_since = self.policy_since = -1
        self.clock_confirmed = 0
        self.deployment = ""
        self._operations = OperationMemory()
        # What has put officers or a policy in force since the baseline; never forgotten.
        self._in_force: dict[bytes, None] = {}
        self._failed_known = False  # a snapshot has said which failed: later ones must, too

    def snapshot(self) -> dict[str, Value]:
        """Returns the field of a SNAPSHOT record that holds this state, ``control``."""
        control: dict[str, Value] = {
            "officers": None if self.officers is None else rows_of(self.officers),
            "development": self.development,
            "policy": self.policy,
            "operations": self._operations.packed,
            "failed": self._operations.packed_failed,
        }
        if self.deployment:
            control |= {
                "deployment": self.deployment,
                "since": [self.officers_since, self.policy_since],
                "in_force": b"".join(self._in_force),
            }
        if self.clock_confirmed:
            control["clock"] = self.clock_confirmed
        return {"control": control}

    def check(self, snapshot: Record) -> None:
        """Raises RecordError if a snapshot differs from the result of the records before it."""
        control, known = snapshot.fields.get("control"), self.snapshot()["control"]
        empty = control is None and self.officers is None  # made before there were officers
        if isinstance(control, Mapping) and isinstance(known, Mapping):
            if "failed" not in control and not self._failed_known:  # made by an earlier version
                control = {**control, "failed": known["failed"]}
            else:
                self._failed_known = True
        if not empty and control != known:
            raise RecordError("the snapshot does not say which officers led to it")

    def _load(self, control: Value) -> None:
        """Takes the state that a snapshot holds; raises ProblemError."""
        match control:
            case {
                "officers": None | list() as officers,
                "development": bool(development),
                "policy": bytes(policy),
                "operations": bytes(rows),
            } if OperationMemory.is_packed(rows):
                self.officers = None if officers is None else read_officers(officers)
                self.development, self.policy = development, policy
                self._operations.load(rows, octets(control, "failed", b""))
            case _:
                raise ProblemError("the snapshot's officers cannot be read")
        match control:
            case {
                "deployment": str(deployment),
                "since": [int(officers_since), int(policy_since)],
                "in_force": bytes(packed),
            } if are_ids(packed):
                self.deployment = deployment
                self.officers_since, self.policy_since = officers_since, policy_since
                self._in_force = dict.fromkeys(ids_in(packed))
        if isinstance(control, Mapping):
            self.clock_confirmed = number(control, "clock", 0)
            self._failed_known = "failed" in control

    def _put_in_force(self, operation: str) -> None:
        """Remembers that an operation's officers or policy came into force: they do so once."""
        identity = operation_id(operation)
        if identity in self._in_force:
            raise ProblemError(f"operation {operation} has put this in force before (repeated)")
        if self.deployment:
            self._in_force[identity] = None
