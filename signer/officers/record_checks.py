"""Checks of single records about operations, each by itself. Pure.

``signer.officers.offline_check`` folds such records, and says which officers are in force.
"""

import uuid

from signer.audit.format.record import DOUBTFUL, Record, number
from signer.clock import JUMP_SECONDS
from signer.officers import approval
from signer.officers.approval import ApprovalError, Officers, Proposal, Signature
from signer.officers.records import ApprovedOperation, SignedRecord
from signer.text import plain

SKEW_US = 5_000_000  # between what is done and its record
_TEXT = 300
Carried = ApprovedOperation | SignedRecord  # the records that carry an operation's bytes


class ProblemError(Exception):
    """A record that officers have not allowed; the text lacks the record's number."""


def problem_text(seq: int, problem: str) -> str:
    """Returns the text of a problem with its record; what it quotes controls no terminal."""
    text = f"record {seq}: {problem}"[:_TEXT]
    return plain(text)


def operation_id(operation: str) -> bytes:
    """Returns an operation's id in 16 bytes; raises ProblemError."""
    try:
        identity = uuid.UUID(operation)
    except ValueError:
        identity = None
    if identity is None or str(identity) != operation:
        raise ProblemError("its operation is not a UUID")
    return identity.bytes


def carried_proposal(carried: Carried) -> Proposal:
    """Reads the operation that a record carries; raises ProblemError, ApprovalError."""
    proposal = approval.parse(carried.content)
    if proposal.id != carried.operation:
        raise ProblemError(f"it names operation {carried.operation} and carries {proposal.id}")
    return proposal


def check_since(proposal: Proposal, since: int) -> None:
    """Raises ProblemError if officers saw that another revision had put in force what was."""
    seen = proposal.details.get("in_force_since", since)
    if since >= 0 and seen != since:
        raise ProblemError(
            f"operation {proposal.id} was to replace what revision {seen} had put in force, and it"
            f" was revision {since}"
        )


def check_clock_time(proposal: Proposal, says: float) -> None:
    """Raises ProblemError if the clock does not say what officers have confirmed.

    That is by how much it is ahead of the time that the appliance counts on, and in that time they
    proposed the operation.
    """
    ahead = proposal.details.get("ahead")
    counted = says - (ahead if isinstance(ahead, int) else 0)
    begins, ends = proposal.proposed_at - 2 * JUMP_SECONDS, proposal.expires_at + approval.LATE
    if not begins <= counted < ends:
        raise ProblemError("its time is not the one that officers have confirmed")


def check_signed(record: Record, said: SignedRecord, content: bytes, officers: Officers) -> None:
    """Checks a signature as of the record's time; it was made, and accepted, a little before.

    Of two times in doubt, the earlier one counts.
    """
    proposal = approval.parse(content)
    at = min(record.time_us, number(record.fields, DOUBTFUL, record.time_us)) / 1_000_000
    signature = Signature(said.officer, said.signature, at)
    try:
        approval.check_signature(content, signature, officers, at, proposal)
    except ApprovalError:
        before = at - SKEW_US / 1_000_000  # the certificate may have ended between the two
        approval.check_signature(content, signature, officers, before, proposal)
