"""OperationService: officers' proposals and approvals, and what stops keys at once."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from signer.api import wire
from signer.api.guard import Caller
from signer.clock import Clock
from signer.config.policy_files import policy_files
from signer.errors import invalid
from signer.model import KeyVersion, Scope
from signer.officers.approval import MAX_SIGNATURE_BYTES, Officers
from signer.officers.emergency import EmergencyStops
from signer.officers.proposals import Proposals
from signer.officers.store import OperationState, StoredOperation
from signer.text import count
from signer.v1 import keys_pb2, operations_pb2_grpc
from signer.v1 import operations_pb2 as pb

MOST_CERTIFICATES = 10_000
MOST_ATTACHED = 3 << 20
"""Bytes of a document in an answer, which has other fields as well."""
_STATES: Mapping[int, OperationState] = {
    number: OperationState(name.removeprefix("OPERATION_STATE_"))
    for name, number in pb.OperationState.items()
    if number
}


class OperationService(operations_pb2_grpc.OperationServiceServicer):
    """Passes calls to Proposals and EmergencyStops, and shows operations."""

    def __init__(
        self,
        proposals: Proposals,
        emergency: EmergencyStops,
        needed: Mapping[str, int],
        origin: str,
        clock: Clock,
    ) -> None:
        self._proposals = proposals
        self._emergency = emergency
        self._needed = needed
        self._origin = origin
        self._clock = clock

    def PrepareOperation(
        self, request: pb.PrepareOperationRequest, caller: Caller
    ) -> pb.PrepareOperationResponse:
        """Answers with the bytes to sign, or with what is wrong; raises CallError."""
        caller.notes["kind"] = request.kind[:32]
        made = self._proposals.prepare(
            caller.principal, request.kind, request.arguments, request.attachment
        )
        return pb.PrepareOperationResponse(
            content=made.content, difference=made.difference, problems=made.problems
        )

    def ProposeOperation(
        self, request: pb.ProposeOperationRequest, caller: Caller
    ) -> pb.ProposeOperationResponse:
        """Stores a signed proposal; raises CallError."""
        operation = self._proposals.propose(
            caller.principal, request.content, _signature(request.signature), request.attachment
        )
        return pb.ProposeOperationResponse(operation=self._noted(operation, caller))

    def ApproveOperation(
        self, request: pb.ApproveOperationRequest, caller: Caller
    ) -> pb.ApproveOperationResponse:
        """Adds the caller's signature; raises CallError."""
        operation = self._proposals.approve(
            caller.principal, request.id, _signature(request.signature)
        )
        return pb.ApproveOperationResponse(operation=self._noted(operation, caller))

    def RejectOperation(
        self, request: pb.RejectOperationRequest, caller: Caller
    ) -> pb.RejectOperationResponse:
        """Ends a proposal; raises CallError."""
        operation = self._proposals.reject(caller.principal, request.id, request.reason)
        return pb.RejectOperationResponse(operation=self._noted(operation, caller))

    def RetryOperation(
        self, request: pb.RetryOperationRequest, caller: Caller
    ) -> pb.RetryOperationResponse:
        """Executes a failed operation again; raises CallError."""
        return pb.RetryOperationResponse(
            operation=self._noted(self._proposals.retry(caller.principal, request.id), caller)
        )

    def ImportCertificates(
        self, request: pb.ImportCertificatesRequest, caller: Caller
    ) -> pb.ImportCertificatesResponse:
        """Adds certificates to a rotation that waits for them; raises CallError."""
        if not 1 <= len(request.certificates) <= MOST_CERTIFICATES:
            raise invalid("certificates", f"expected 1 to {MOST_CERTIFICATES}")
        operation = self._proposals.import_certificates(
            caller.principal, request.id, list(request.certificates)
        )
        return pb.ImportCertificatesResponse(operation=self._noted(operation, caller))

    def GetOperation(
        self, request: pb.GetOperationRequest, _caller: Caller
    ) -> pb.GetOperationResponse:
        """Answers with one operation and what it changes; raises CallError."""
        operation, difference = self._proposals.get(request.id)
        shown = self._shown(operation)
        shown.content = operation.content
        shown.difference.extend(difference)
        attachment = self._proposals.attachment(operation) if request.attachment else b""
        if len(attachment) > MOST_ATTACHED:
            raise invalid("attachment", f"has {len(attachment)} bytes: too long for an answer")
        return pb.GetOperationResponse(operation=shown, attachment=attachment)

    def ListOperations(
        self, request: pb.ListOperationsRequest, _caller: Caller
    ) -> pb.ListOperationsResponse:
        """Answers with one page of operations; raises CallError."""
        if request.state and request.state not in _STATES:
            raise invalid("state", f"{request.state} is not a state of an operation")
        state = _STATES.get(request.state)
        size = wire.page_size(request.page_size)
        page = self._proposals.page(state, size + 1, _page_start(request.page_token))
        more = page[size - 1] if len(page) > size else None
        token = f"{more.proposal.proposed_at}/{more.id}" if more else ""
        now = self._clock.now()
        shown = [self._shown(each) for each in page[:size] if state in (None, each.state_at(now))]
        return pb.ListOperationsResponse(operations=shown, next_page_token=token)

    def GetPolicy(self, request: pb.GetPolicyRequest, _caller: Caller) -> pb.GetPolicyResponse:
        """Answers with a page of the policy in force; raises CallError."""
        in_force = self._proposals.policy()
        sha256 = in_force.policy.sha256
        skip = _policy_offset(request.page_token, sha256)
        files, room = list[pb.PolicyFile](), MOST_ATTACHED
        end = skip
        for name, content in policy_files(in_force.text):
            part = content[skip : skip + room]
            if skip < len(content) and room:
                files.append(pb.PolicyFile(name=name, content=part))
                end, room = end + len(part), room - len(part)
            skip = max(0, skip - len(content))
        more = end < sum(len(content) for _, content in policy_files(in_force.text))
        token = f"{sha256}/{end}" if more else ""
        return pb.GetPolicyResponse(policy_sha256=sha256, files=files, next_page_token=token)

    def ListOfficers(
        self, _request: pb.ListOfficersRequest, _caller: Caller
    ) -> pb.ListOfficersResponse:
        """Answers with the officers, and how many each operation needs; raises CallError."""
        officers: Officers = self._emergency.officers()
        return pb.ListOfficersResponse(
            officers=[
                pb.Officer(principal=who, certificate=der) for who, der in sorted(officers.items())
            ],
            needed=dict(self._needed),
            origin=self._origin,
        )

    def SuspendKey(self, request: pb.SuspendKeyRequest, caller: Caller) -> pb.SuspendKeyResponse:
        """Stops a key or version at once; raises CallError."""
        changed = self._stop(self._emergency.suspend_key, request.name, request.reason, caller)
        return pb.SuspendKeyResponse(key_versions=changed)

    def MarkKeyCompromised(
        self, request: pb.MarkKeyCompromisedRequest, caller: Caller
    ) -> pb.MarkKeyCompromisedResponse:
        """Ends a key or version for good; raises CallError."""
        changed = self._stop(self._emergency.compromise, request.name, request.reason, caller)
        return pb.MarkKeyCompromisedResponse(key_versions=changed)

    def SuspendFacility(
        self, request: pb.SuspendFacilityRequest, caller: Caller
    ) -> pb.SuspendFacilityResponse:
        """Stops a facility at once; raises CallError."""
        self._suspend(Scope.FACILITY, request.facility, request.reason, caller)
        return pb.SuspendFacilityResponse()

    def SuspendGroup(
        self, request: pb.SuspendGroupRequest, caller: Caller
    ) -> pb.SuspendGroupResponse:
        """Stops a group at once; raises CallError."""
        self._suspend(Scope.GROUP, request.group, request.reason, caller)
        return pb.SuspendGroupResponse()

    def SuspendEverything(
        self, request: pb.SuspendEverythingRequest, caller: Caller
    ) -> pb.SuspendEverythingResponse:
        """Stops everything at once; raises CallError."""
        self._suspend(Scope.EVERYTHING, "", request.reason, caller)
        return pb.SuspendEverythingResponse()

    def ListSuspensions(
        self, _request: pb.ListSuspensionsRequest, _caller: Caller
    ) -> pb.ListSuspensionsResponse:
        """Answers with the suspensions, without those of single keys; raises CallError."""
        return pb.ListSuspensionsResponse(
            suspensions=[
                pb.Suspension(
                    scope=str(each.scope),
                    name=each.name,
                    begin_time=wire.timestamp(each.since),
                    officer=each.officer,
                    reason=each.reason,
                )
                for each in self._emergency.suspensions()
            ]
        )

    def _stop(
        self,
        act: Callable[[str, str, str], Sequence[KeyVersion]],
        name: str,
        reason: str,
        caller: Caller,
    ) -> list[keys_pb2.KeyVersion]:
        caller.notes["key"] = name[:256]
        now = self._clock.now()
        changed = act(caller.principal, name, reason)
        return [wire.key_version(each, each.state_at(now)) for each in changed]

    def _suspend(self, scope: Scope, name: str, reason: str, caller: Caller) -> None:
        caller.notes |= {"scope": str(scope), "name": name[:64]}
        self._emergency.suspend(caller.principal, scope, name, reason)

    def _noted(self, operation: StoredOperation, caller: Caller) -> pb.Operation:
        """Returns the operation as shown, and notes its id for the call's log line."""
        caller.notes |= {"operation": operation.id, "kind": operation.proposal.kind}
        return self._shown(operation)

    def _shown(self, operation: StoredOperation) -> pb.Operation:
        proposal = operation.proposal
        return pb.Operation(
            id=operation.id,
            kind=proposal.kind,
            state=f"OPERATION_STATE_{operation.state_at(self._clock.now())}",
            proposer=proposal.proposer,
            propose_time=wire.timestamp(proposal.proposed_at),
            expire_time=wire.timestamp(proposal.expires_at),
            officers=proposal.officers,
            signatures=[
                pb.OfficerSignature(
                    officer=each.officer,
                    signature=each.signature,
                    sign_time=wire.timestamp(each.at),
                )
                for each in operation.signatures
            ],
            done=operation.done,
            total=operation.total,
            note=operation.note,
            result="" if operation.result is None else json.dumps(operation.result),
            change_time=wire.timestamp(operation.changed_at),
            target=_target(proposal.details),
        )


def _target(details: Mapping[str, Any]) -> str:
    """Returns what an operation is about, from the details that officers sign."""
    for member in ("version", "key", "target"):
        if details.get(member):
            return str(details[member])[:300]
    if facilities := details.get("facilities"):
        return f"{count(int(facilities), 'facility', 'facilities')}"
    if keys := details.get("keys"):
        return count(int(keys), "key")
    if sha256 := details.get("policy_sha256"):
        return f"policy {str(sha256)[:12]}"
    if officers := details.get("officers"):
        return count(len(officers), "officer")
    return ""


def _signature(data: bytes) -> bytes:
    if not 1 <= len(data) <= MAX_SIGNATURE_BYTES:
        raise invalid("signature", f"has {len(data)} bytes, expected 1 to {MAX_SIGNATURE_BYTES}")
    return data


def _policy_offset(token: str, sha256: str) -> int:
    """Returns how many bytes of files the pages before had; raises CallError."""
    if not token:
        return 0
    of, _, offset = token.partition("/")
    if of != sha256 or not offset.isascii() or not offset.isdigit() or len(offset) > 12:
        raise wire.bad_token()
    return int(offset)


def _page_start(token: str) -> tuple[float, str] | None:
    if not token:
        return None
    at, slash, identity = token.partition("/")
    if not slash or not at.isascii() or not at.isdigit() or len(at) > 12:
        raise wire.bad_token()
    return float(at), identity
