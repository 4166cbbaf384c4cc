"""Records what officers decided, also while this appliance was away.

The log judges a record of officers or of a policy by the set of officers before it
(``signer.officers.offline_check``). So an appliance that missed several decisions records each
with its approval, in their order, and not only the last.
"""

from typing import NamedTuple

from signer.daemon.audit_log import DaemonLog
from signer.daemon.policy_in_force import PolicyInForce
from signer.errors import OperatorError
from signer.keys.registry import Registry, RegistryState
from signer.officers.approval import officers_sha256
from signer.officers.kinds.officer_change import officers_of
from signer.officers.offline_check import ApprovalFold
from signer.officers.records import ApprovedOperation, OfficersRecord, OperationRecords
from signer.officers.store import OperationStore, StoredOperation

_OFFICERS = "officers"
_POLICIES = ("policy", "enrol")


class _InForce(NamedTuple):
    """Which officers and which policy are in force, by their SHA-256."""

    officers: str
    policy: str


class CatchUp:
    """Brings one appliance's log up to date with officers and policy. Raises OperatorError."""

    def __init__(
        self, registry: Registry, log: DaemonLog, records: OperationRecords, approvals: ApprovalFold
    ) -> None:
        """``approvals`` is what the log's records so far say."""
        self._registry, self._store = registry, OperationStore(registry)
        self._log, self._records, self._approvals = log, records, approvals

    def record(self, state: RegistryState, policies: PolicyInForce) -> None:
        """Records what is in force and not yet in the log, and the approvals that led to it."""
        text, development = policies.text, policies.development
        now = _InForce(officers_sha256(state.officers), text.policy.sha256)
        approvals = self._approvals
        if approvals.officers is None and state.officers:
            policy = bytes.fromhex(now.policy)
            first = OfficersRecord(state.officers, development=development, policy=policy)
            self._records.officers(first)
        logged = _InForce(officers_sha256(approvals.officers or {}), approvals.policy.hex())
        if not state.officers:
            logged = logged._replace(officers=now.officers)
        if policies.files_decide(state):  # the policy in the files needs no approval
            logged = logged._replace(policy=now.policy)
        for operation in self._between(logged, now):
            self._record(operation)
        self._log.policy(now.policy, text.text, self._approval(now.policy))

    def _record(self, operation: StoredOperation) -> None:
        if operation.proposal.kind == _OFFICERS:
            approved = ApprovedOperation.of(operation)
            self._records.officers(OfficersRecord(officers_of(operation), approved))
            return
        sha256 = str(operation.proposal.details["policy_sha256"])
        content = self._registry.document(sha256)
        if content is not None:
            self._log.policy(sha256, content, ApprovedOperation.of(operation))

    def _approval(self, policy: str) -> ApprovedOperation | None:
        """Returns the newest operation that approved a policy, None without one."""
        for operation in self._store.newest_done(_POLICIES):
            if operation.proposal.details["policy_sha256"] == policy:
                return ApprovedOperation.of(operation)
        return None

    def _between(self, logged: _InForce, now: _InForce) -> list[StoredOperation]:
        """Returns the operations that led from one state to the other, in their order.

        They are searched from the newest back, because an earlier state may come into force
        again. A policy to which no operation leads was put there by hand: it is recorded without
        an approval, and ``signer audit verify`` reports it.
        """
        at, chain = now, list[StoredOperation]()
        for operation in self._store.newest_done((_OFFICERS, *_POLICIES)):
            if at == logged:
                break
            replaces = str(operation.proposal.details["replaces"])
            if operation.proposal.kind == _OFFICERS:
                if officers_sha256(officers_of(operation)) != at.officers:
                    continue
                at = at._replace(officers=replaces)
            else:
                if operation.proposal.details["policy_sha256"] != at.policy:
                    continue
                at = at._replace(policy=replaces)
            chain.append(operation)
        if at.officers != logged.officers:
            raise OperatorError(
                "no operation leads to the officers that the registry has: is it older than the"
                " audit log? Put the newest registry back"
            )
        chain.reverse()
        if at.policy == logged.policy:
            return chain
        return [operation for operation in chain if operation.proposal.kind == _OFFICERS]
