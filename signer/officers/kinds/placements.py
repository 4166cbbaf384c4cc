"""The kinds add-placement and remove-placement: which tokens may sign with a version.

The key is copied by the HSM's own means, such as cloning or a restored backup: no operation moves
a private key. What is added is proven: the other token signs, and the pin verifies it.
"""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from signer.errors import OperatorError
from signer.model import KeyState, KeyVersion, Placement
from signer.officers.kinds.base import Details, Effects, OperationKind, Work
from signer.officers.kinds.create_key import try_out
from signer.officers.kinds.operation_context import OperationContext, basis_problems
from signer.officers.permits import ADD_PLACEMENT, REMOVE_PLACEMENT
from signer.officers.possession import claim_of_placement
from signer.officers.store import PROOF

_CKA_ID = re.compile("([0-9a-f]{2}){1,255}")
_KEPT_SECRET = {"sensitive": True, "extractable": False}
"""What a copy must be; where and how it was made, no token can say of a copy."""


class PlacementDetails(Details):
    """One token and the CKA_ID there, in hex; empty: that of the version's first token.

    ``basis`` has the states of the key's versions, as officers saw them.
    """

    version: str
    token: str
    cka_id: str = ""
    basis: dict[str, str] = Field(default_factory=dict)

    @property
    def placement(self) -> Placement:
        return Placement(self.token, bytes.fromhex(self.cka_id))


class AddPlacementKind(OperationKind[PlacementDetails]):
    """Lets another token sign with a version, after it has signed once and been checked."""

    name = ADD_PLACEMENT
    details = PlacementDetails

    def complete(self, details: PlacementDetails, context: OperationContext) -> PlacementDetails:
        version = context.version(details.version)
        cka_id = details.cka_id.lower() or version.cka_id.hex()
        return details.model_copy(update={"cka_id": cka_id, "basis": context.basis(version.key)})

    def problems(self, details: PlacementDetails, context: OperationContext) -> list[str]:
        version = context.version(details.version)
        if changed := basis_problems(details.basis, context.basis(version.key)):
            return changed
        problems = context.token_problems(details.token)
        if not _CKA_ID.fullmatch(details.cka_id):
            problems.append("cka_id: should be 1 to 255 bytes in hex")
        if version.wrapped is not None:
            return [f"{version.name} is stored wrapped: every token with its wrapping key signs"]
        if version.state is KeyState.DESTROYED:
            problems.append(f"{version.name} is {version.state}")
        if version.cka_id_on(details.token) is not None:
            problems.append(f"{version.name} is on token {details.token} already")
        return problems

    def difference(self, details: PlacementDetails, context: OperationContext) -> list[str]:
        version = context.version(details.version)
        return [
            f"+ {version.name} is also on token {details.token}, CKA_ID {details.cka_id}",
            *_now_on(version),
            f"  token {details.token} must sign once; the public key in the registry verifies it",
        ]

    def execute(self, details: PlacementDetails, work: Work) -> Effects:
        version, placement = work.context.version(details.version), details.placement
        claim = claim_of_placement(work.id, version.name, placement)
        with work.admin(placement.token) as admin:
            proof = try_out(admin, version, placement.cka_id, claim)
            attributes = admin.attributes(placement.cka_id)
            described = admin.describe()
        wrong = [name for name, value in _KEPT_SECRET.items() if attributes.get(name) is not value]
        if wrong:
            raise OperatorError(
                f"token {placement.token} holds the key of {version.name} with another value of"
                f" {', '.join(wrong)}: copy it so that it is sensitive and not extractable"
            )
        result = {
            **_result(version, placement),
            "token": described,
            "attributes": attributes,
            PROOF: proof.hex(),
        }
        return Effects(placed=[(version, placement)], result=result)


class RemovePlacementKind(OperationKind[PlacementDetails]):
    """Ends the use of a token for a version. The key on that token is not destroyed."""

    name = REMOVE_PLACEMENT
    details = PlacementDetails

    def complete(self, details: PlacementDetails, context: OperationContext) -> PlacementDetails:
        version = context.version(details.version)
        cka_id = version.cka_id_on(details.token)
        return details.model_copy(
            update={
                "cka_id": "" if cka_id is None else cka_id.hex(),
                "basis": context.basis(version.key),
            }
        )

    def problems(self, details: PlacementDetails, context: OperationContext) -> list[str]:
        version = context.version(details.version)
        if changed := basis_problems(details.basis, context.basis(version.key)):
            return changed
        if details.token == version.token:
            made = f"{version.name} was made on token {details.token}"
            return [f"{made}: rotate the key to make its next version on another token"]
        if not _CKA_ID.fullmatch(details.cka_id) or details.placement not in version.placements:
            return [f"{version.name} is not on token {details.token}"]
        return []

    def difference(self, details: PlacementDetails, context: OperationContext) -> list[str]:
        version = context.version(details.version)
        return [
            f"- {version.name} is no longer on token {details.token}, CKA_ID {details.cka_id}",
            *_now_on(version),
            "  that key stays in the HSM: destroy it by the HSM's own means",
        ]

    def execute(self, details: PlacementDetails, work: Work) -> Effects:
        version, placement = work.context.version(details.version), details.placement
        return Effects(removed=[(version, placement)], result=_result(version, placement))


def _now_on(version: KeyVersion) -> list[str]:
    return [f"  it is on {', '.join(token for token, _ in version.placements)} now"]


def _result(version: KeyVersion, placement: Placement) -> Mapping[str, Any]:
    return {"key_version": version.name, "placement": [placement.token, placement.cka_id.hex()]}
