"""What officers have decided, recorded in the order in which it took effect.

A record of officers or of a policy is judged by the set of officers before it
(``signer.officers.offline_check``). So an appliance that was not there when several things were
decided records each of them with its approval, in their order, and not only the last.
"""

from __future__ import annotations

from typing import NamedTuple

from signer.config.policy_documents import PolicyText
from signer.daemon.audit_log import DaemonLog
from signer.errors import OperatorError
from signer.keys.registry import Registry, RegistryState
from signer.officers.approval import officers_sha256
from signer.officers.kinds.officer_change import officers_of
from signer.officers.offline_check import ApprovalFold
from signer.officers.records import ApprovedOperation, OfficersRecord, OperationRecords
from signer.officers.store import OperationStore, StoredOperation

_OFFICERS = "officers"
_POLICIES = ("policy", "enrol")


class _Place(NamedTuple):
    """Which officers and which policy are in force, by their SHA-256."""

    officers: str
    policy: str


class Decisions:
    """Records of officers and policies in one appliance's log. Raises OperatorError."""

    def __init__(
        self,
        registry: Registry,
        log: DaemonLog,
        journal: OperationRecords,
        approvals: ApprovalFold,
        *,
        development: bool,
    ) -> None:
        self._registry, self._store = registry, OperationStore(registry)
        self._log, self._journal, self._approvals = log, journal, approvals
        self._development = development
        self._told: _Place | None = None

    def record(self, state: RegistryState, text: PolicyText, *, files_decide: bool) -> None:
        """Records what is in force where the log does not know it yet, and how it came to be."""
        now = _Place(officers_sha256(state.officers), text.policy.sha256)
        approvals = self._approvals
        if now == self._told:
            return
        self._told = now
        if approvals.officers is None and state.officers:
            policy = bytes.fromhex(now.policy)
            first = OfficersRecord(state.officers, development=self._development, policy=policy)
            self._journal.officers(first)
        known = _Place(officers_sha256(approvals.officers or {}), approvals.policy.hex())
        if not state.officers:
            known = known._replace(officers=now.officers)
        if files_decide:  # the files' policy needs nobody
            known = known._replace(policy=now.policy)
        for operation in self._since(known, now):
            self._tell(operation)
        self._log.policy(now.policy, text.text, self._approval(now.policy))

    def _tell(self, operation: StoredOperation) -> None:
        if operation.proposal.kind == _OFFICERS:
            approved = ApprovedOperation.of(operation)
            self._journal.officers(OfficersRecord(officers_of(operation), approved))
            return
        sha256 = str(operation.proposal.details["policy_sha256"])
        content = self._registry.document(sha256)
        if content is not None:
            self._log.policy(sha256, content, ApprovedOperation.of(operation))

    def _approval(self, policy: str) -> ApprovedOperation | None:
        done = self._store.newest_done(_POLICIES)
        found = (o for o in done if o.proposal.details["policy_sha256"] == policy)
        operation = next(found, None)
        return None if operation is None else ApprovedOperation.of(operation)

    def _since(self, known: _Place, now: _Place) -> list[StoredOperation]:
        """The operations that led from one place to the other, in their order.

        Backwards, for a place that was in force before may be so again. A policy to which
        none leads was put there by hand: it is recorded as it is, and verify tells.
        """
        place, chain = now, list[StoredOperation]()
        for operation in self._store.newest_done((_OFFICERS, *_POLICIES)):
            if place == known:
                break
            replaces = str(operation.proposal.details["replaces"])
            if operation.proposal.kind == _OFFICERS:
                if officers_sha256(officers_of(operation)) != place.officers:
                    continue
                place = place._replace(officers=replaces)
            else:
                if operation.proposal.details["policy_sha256"] != place.policy:
                    continue
                place = place._replace(policy=replaces)
            chain.append(operation)
        if place.officers != known.officers:
            raise OperatorError(
                "no operation leads to the officers that the registry has: is it older than the"
                " audit log? Put the newest registry back"
            )
        chain.reverse()
        if place.policy == known.policy:
            return chain
        return [each for each in chain if each.proposal.kind == _OFFICERS]
