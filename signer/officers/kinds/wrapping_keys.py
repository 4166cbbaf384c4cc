"""The kind create-wrapping-key: what wraps the private keys that no token holds."""

from collections.abc import Mapping
from typing import Any

from signer.model import WrappingKey, wrapping_cka_id
from signer.officers.kinds.base import Details, Effects, OperationContext, OperationKind, Work


class CreateWrappingKey(Details):
    """The token that makes it. Its id is that of the operation."""

    token: str = ""


class CreateWrappingKeyKind(OperationKind[CreateWrappingKey]):
    """Makes a wrapping key on a token; keys that are made later are wrapped by it."""

    name = "create-wrapping-key"
    details = CreateWrappingKey

    def complete(self, details: CreateWrappingKey, context: OperationContext) -> CreateWrappingKey:
        return CreateWrappingKey(token=context.token(details.token))

    def problems(self, details: CreateWrappingKey, context: OperationContext) -> list[str]:
        return context.token_problems(details.token)

    def difference(self, details: CreateWrappingKey, context: OperationContext) -> list[str]:
        lines = [
            f"+ a wrapping key on token {details.token}: AES-256, it does not leave the token",
            "  keys that are stored wrapped and made there from now on are wrapped by it",
        ]
        if before := context.wrapping_key(details.token):
            lines.append(f"  those that {before} has wrapped stay as they are")
        return [
            *lines,
            "! back the token up by its own means: without this key all of them are lost",
        ]

    def execute(self, details: CreateWrappingKey, work: Work) -> Effects:
        with work.admin(details.token) as admin:
            attributes, described = admin.make_wrapping_key(work.id), admin.describe()
        made = WrappingKey(work.id, details.token, work.clock.now())
        result: Mapping[str, Any] = {
            "wrapping_key": made.id,
            "cka_id": wrapping_cka_id(made.id).hex(),
            "token": described,
            "attributes": attributes,
        }
        return Effects(wrapping_keys=[made], result=result)
