"""What an officer asked for, and whether the bytes to sign are exactly that. Pure."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from signer.errors import OperatorError

if TYPE_CHECKING:
    from cryptography import x509

    from signer.officers.approval import Proposal

FILLED: Mapping[str, frozenset[str]] = {
    "create-key": frozenset({"token"}),
    "new-version": frozenset({"token", "version", "algorithm", "bits"}),
    "import-certificate": frozenset(),
    "activate": frozenset({"basis"}),
    "resume": frozenset({"basis", "since"}),
    "deactivate": frozenset({"basis"}),
    "schedule-destruction": frozenset({"basis"}),
    "destroy": frozenset({"basis"}),
    "restore": frozenset({"basis"}),
    "policy": frozenset({"policy_sha256", "replaces", "in_force_since"}),
    "enrol": frozenset(
        {"token", "facilities", "keys", "file", "policy_sha256", "replaces", "in_force_since"}
    ),
    "officers": frozenset({"replaces", "in_force_since"}),
    "rotate": frozenset({"token"}),
}
"""By kind: what the appliance may add by itself. The rest must be what was asked for."""

_ABSENT = object()


class Asked(NamedTuple):
    """An operation that an officer asks for.

    ``expected`` are the members that must stand in the operation's details.
    """

    kind: str
    arguments: Mapping[str, Any]
    expected: Mapping[str, Any]
    attachment: bytes = b""


def ask(kind: str, arguments: Mapping[str, Any], attachment: bytes = b"", **also: Any) -> Asked:
    """Makes what is asked for of its arguments; ``also`` replaces or adds what is expected.

    An empty argument that the appliance may fill is its choice.
    """
    open_ = {name for name in FILLED[kind] if not arguments.get(name)}
    expected = {name: value for name, value in arguments.items() if name not in open_}
    return Asked(kind, arguments, expected | also, attachment)


def with_certificates(
    kind: str, arguments: Mapping[str, Any], attachment: bytes = b"", **certificates: Any
) -> Asked:
    """As ``ask``, with certificates, which are sent as PEM and approved as base64 of DER.

    Each of ``certificates`` is one or a list.
    """
    sent = {name: _each(pem, value) for name, value in certificates.items()}
    expected = {name: _each(der64, value) for name, value in certificates.items()}
    return ask(kind, {**arguments, **sent}, attachment, **expected)


def _each(write: Any, value: Any) -> Any:
    return [write(each) for each in value] if isinstance(value, list) else write(value)


def pem(certificate: x509.Certificate) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM).decode()


def der64(certificate: x509.Certificate) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    return base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()


def change_officers(
    now: Mapping[str, bytes], added: Mapping[str, x509.Certificate], removed: Sequence[str]
) -> Asked:
    """Asks for another set of officers; ``now`` has the certificates (DER) of those in force."""
    after = {
        who: base64.b64encode(der).decode() for who, der in now.items() if who not in removed
    } | {who: der64(certificate) for who, certificate in added.items()}
    arguments = {"add": [pem(each) for each in added.values()], "remove": list(removed)}
    return ask("officers", arguments, add=[], remove=[], officers=after)


def enrol(csv: bytes, token: str) -> Asked:
    """Asks for the facilities of a CSV."""
    return ask("enrol", {"token": token}, csv, csv_sha256=hashlib.sha256(csv).hexdigest())


def check_content(content: bytes, asked: Asked, me: str) -> Proposal:
    """Checks that the bytes to sign are an operation, mine, and what I asked for.

    The appliance made them: whoever signs without looking would sign whatever it wants.
    Raises OperatorError.
    """
    proposal = _parsed(content)
    wrong = []
    if proposal.kind != asked.kind:
        wrong.append(f"it is of kind {proposal.kind}, asked was for {asked.kind}")
    if proposal.proposer != me:
        wrong.append(f"its proposer is {proposal.proposer}, not {me}")
    for name, value in asked.expected.items():
        found = proposal.details.get(name, _ABSENT)
        if found is _ABSENT:
            wrong.append(f"{name} is missing")
        elif not _same(found, value):
            wrong.append(f"{name} is {_shown(found)}, asked was for {_shown(value)}")
    unknown = proposal.details.keys() - asked.expected.keys() - FILLED[asked.kind]
    wrong += [f"{name} was not asked for" for name in sorted(unknown)]
    if wrong:
        raise OperatorError(
            "the appliance gave other bytes to sign than were asked for; nothing was signed:\n  "
            + "\n  ".join(wrong)
        )
    return proposal


def _same(found: Any, value: Any) -> bool:
    """Whether two JSON values are alike; True is not 1 here."""
    return json.dumps(found, sort_keys=True) == json.dumps(value, sort_keys=True)


def check_foreign(content: bytes, identity: str, me: str) -> Proposal:
    """Checks that the bytes to approve are the operation ``identity``, and not my own proposal.

    Raises OperatorError.
    """
    proposal = _parsed(content)
    if proposal.id != identity:
        raise OperatorError(
            f"the appliance gave the bytes of operation {proposal.id} for {identity};"
            " nothing was signed"
        )
    if proposal.proposer == me:
        raise OperatorError("you proposed it: another officer approves it")
    return proposal


def _parsed(content: bytes) -> Proposal:
    from signer.officers.approval import ApprovalError, parse

    try:
        return parse(content)
    except ApprovalError as error:
        raise OperatorError(f"{error}; nothing was signed") from error


def _shown(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 80 else f"{text[:77]}..."
