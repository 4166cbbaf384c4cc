"""What an officer requests, and the check that the bytes to sign are exactly that. Pure."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from signer.errors import OperatorError
from signer.officers.approval import ApprovalError, Proposal, parse

FILLED: Mapping[str, frozenset[str]] = {
    "add-placement": frozenset({"cka_id", "basis"}),
    "remove-placement": frozenset({"cka_id", "basis"}),
    "create-key": frozenset({"token", "wrapping_key"}),
    "create-wrapping-key": frozenset({"token"}),
    "destroy-wrapping-key": frozenset(),
    "place-wrapping-key": frozenset(),
    "rewrap": frozenset({"to_key", "token"}),
    "new-version": frozenset({"token", "version", "algorithm", "bits", "wrapping_key"}),
    "import-certificate": frozenset({"basis"}),
    "activate": frozenset({"basis"}),
    "clock": frozenset({"ahead", "right_until", "follows"}),
    "resume": frozenset({"basis", "since"}),
    "deactivate": frozenset({"basis"}),
    "schedule-destruction": frozenset({"basis"}),
    "destroy": frozenset({"basis"}),
    "restore": frozenset({"basis"}),
    "policy": frozenset({"policy_sha256", "replaces", "in_force_since"}),
    "enrol": frozenset(
        {
            *("token", "wrapping_key", "facilities", "keys", "file"),
            *("policy_sha256", "replaces", "in_force_since"),
        }
    ),
    "officers": frozenset({"replaces", "in_force_since"}),
    "rotate": frozenset({"token", "wrapping_key"}),
}
"""By kind: the members that the appliance may fill in. The others must be as requested."""


class OperationRequest(NamedTuple):
    """An operation that an officer requests; its details must have the ``expected`` members."""

    kind: str
    arguments: Mapping[str, Any]
    expected: Mapping[str, Any]
    attachment: bytes = b""
    source: str = ""
    """The file of the attachment, for texts about it."""

    def told(self, problem: str) -> str:
        """Returns a problem with the file's name, where it is one of the attachment."""
        if self.source and problem.startswith(("attachment: ", "line ")):
            rest = problem.removeprefix("attachment: ")
            return f"{self.source}{', ' if rest == problem else ': '}{rest}"
        return problem


def request(
    kind: str, arguments: Mapping[str, Any], attachment: bytes = b"", **expected: Any
) -> OperationRequest:
    """Makes a request of its arguments; ``expected`` replaces or adds expected members.

    The appliance may fill in an empty argument where the kind allows it.
    """
    filled = {name for name in FILLED[kind] if not arguments.get(name)}
    given = {name: value for name, value in arguments.items() if name not in filled}
    return OperationRequest(kind, arguments, given | expected, attachment)


def request_with_certificates(
    kind: str, arguments: Mapping[str, Any], attachment: bytes = b"", **certificates: Any
) -> OperationRequest:
    """As ``request``, with certificates, which are sent as PEM and approved as base64 of DER.

    Each of ``certificates`` is one or a list.
    """
    sent = {name: _encoded(pem, value) for name, value in certificates.items()}
    expected = {name: _encoded(der64, value) for name, value in certificates.items()}
    return request(kind, {**arguments, **sent}, attachment, **expected)


def _encoded(encode: Callable[[x509.Certificate], str], value: Any) -> Any:
    return [encode(one) for one in value] if isinstance(value, list) else encode(value)


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def der64(certificate: x509.Certificate) -> str:
    return base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()


def officers_request(
    in_force: Mapping[str, bytes], added: Mapping[str, x509.Certificate], removed: Sequence[str]
) -> OperationRequest:
    """Requests another set of officers; ``in_force`` has the present certificates (DER)."""
    after = {
        principal: base64.b64encode(der).decode()
        for principal, der in in_force.items()
        if principal not in removed
    } | {principal: der64(certificate) for principal, certificate in added.items()}
    arguments = {"add": [pem(one) for one in added.values()], "remove": list(removed)}
    return request("officers", arguments, add=[], remove=[], officers=after)


def check_content(content: bytes, requested: OperationRequest, me: str) -> Proposal:
    """Checks that the bytes to sign are an operation, proposed by ``me``, and as requested.

    The appliance made the bytes: an officer who signed them unchecked would sign whatever
    it wants. Raises OperatorError.
    """
    proposal = _parsed(content)
    wrong = []
    if proposal.kind != requested.kind:
        wrong.append(f"its kind is {proposal.kind}, requested: {requested.kind}")
    if proposal.proposer != me:
        wrong.append(f"its proposer is {proposal.proposer}, not {me}")
    for name, value in requested.expected.items():
        if name not in proposal.details:
            wrong.append(f"{name} is missing")
            continue
        actual, wanted = (json.dumps(v, sort_keys=True) for v in (proposal.details[name], value))
        if actual != wanted:  # compared as JSON: True is not 1
            wrong.append(f"{name} is {_shown(actual)}, requested: {_shown(wanted)}")
    unknown = proposal.details.keys() - requested.expected.keys() - FILLED[requested.kind]
    wrong += [f"{name} was not requested" for name in sorted(unknown)]
    if wrong:
        raise OperatorError(
            "the appliance returned other bytes to sign than requested; nothing was signed:\n  "
            + "\n  ".join(wrong)
        )
    return proposal


def check_foreign(content: bytes, identity: str, me: str) -> Proposal:
    """Checks that the bytes to approve are the operation ``identity``, proposed by another officer.

    Raises OperatorError.
    """
    proposal = _parsed(content)
    if proposal.id != identity:
        raise OperatorError(
            f"the appliance returned the bytes of operation {proposal.id} for {identity};"
            " nothing was signed"
        )
    if proposal.proposer == me:
        raise OperatorError("you proposed this operation: another officer must approve it")
    return proposal


def _parsed(content: bytes) -> Proposal:
    try:
        return parse(content)
    except ApprovalError as error:
        raise OperatorError(f"{error}; nothing was signed") from error


def _shown(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
