"""The kinds create-wrapping-key, place-wrapping-key, rewrap and destroy-wrapping-key.

A wrapping key wraps the private keys that no token holds. Its rotation is three operations: another
one is created, what the old one has wrapped is wrapped anew, and the old one is destroyed.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from signer.errors import OperatorError
from signer.keys.lifecycle import TokenAdmin
from signer.keys.writing import ChangedMeanwhileError
from signer.model import KeyVersion, WrappedKey, WrappingKey, wrapping_cka_id
from signer.officers.kinds.base import Details, Effects, OperationKind, Work, shortened
from signer.officers.kinds.create_key import try_out
from signer.officers.kinds.operation_context import OperationContext
from signer.officers.permits import PLACE_WRAPPING_KEY, REWRAP
from signer.officers.possession import claim_of_wrapped, claim_of_wrapping_key
from signer.officers.store import PROOF
from signer.text import count

BATCH = 50  # keys of one transaction


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


class PlaceWrappingKey(Details):
    """The id of a wrapping key, and another token that holds it."""

    wrapping_key: str
    token: str


class PlaceWrappingKeyKind(OperationKind[PlaceWrappingKey]):
    """Lets another token sign with what a wrapping key has wrapped, once it has done that."""

    name = PLACE_WRAPPING_KEY
    details = PlaceWrappingKey

    def problems(self, details: PlaceWrappingKey, context: OperationContext) -> list[str]:
        identity, problems = details.wrapping_key, context.token_problems(details.token)
        tokens = _tokens_of(identity, context)
        if not tokens:
            problems.append(f"wrapping_key: there is none {identity[:36]}, or it is destroyed")
        elif details.token in tokens:
            problems.append(f"wrapping_key: it is on token {details.token} already")
        elif not wrapped_by(identity, context):
            problems.append(
                "wrapping_key: it has wrapped no key yet, with which the token could be tried"
            )
        return problems

    def difference(self, details: PlaceWrappingKey, context: OperationContext) -> list[str]:
        keys = wrapped_by(details.wrapping_key, context)
        number = count(len(keys), "key")
        return [
            f"+ token {details.token} signs with {number} that {details.wrapping_key} has wrapped",
            *(f"  it must unwrap {key.name} and sign once" for key in keys[:1]),
        ]

    def execute(self, details: PlaceWrappingKey, work: Work) -> Effects:
        context, identity = work.context, details.wrapping_key
        keys = [v for v in wrapped_by(identity, context) if v.name not in context.unaccounted]
        if not keys:
            raise OperatorError("no key that the log accounts for is wrapped by it: nothing to try")
        claim = claim_of_wrapping_key(work.id, keys[0].name, identity, details.token)
        with work.admin(details.token) as admin:
            proof = try_out(admin, keys[0], says=claim)
        first = min(key.created for key in context.state.wrapping_keys if key.id == identity)
        placed = WrappingKey(identity, details.token, first)
        result = {"wrapping_key": identity, "token": details.token}
        result |= {"key_version": keys[0].name, PROOF: proof.hex()}
        return Effects(wrapping_keys=[placed], result=result)


class Rewrap(Details):
    """The ids of two wrapping keys, and a token that holds both."""

    from_key: str
    to_key: str = ""
    token: str = ""


class RewrapKind(OperationKind[Rewrap]):
    """Wraps by another wrapping key all that one has wrapped; public keys stay the same."""

    name = REWRAP
    details = Rewrap

    def complete(self, details: Rewrap, context: OperationContext) -> Rewrap:
        token = context.token(details.token)
        to_key = details.to_key or context.wrapping_key(token)
        return Rewrap(from_key=details.from_key, to_key=to_key, token=token)

    def problems(self, details: Rewrap, context: OperationContext) -> list[str]:
        problems = context.token_problems(details.token)
        for name, identity in (("from_key", details.from_key), ("to_key", details.to_key)):
            if details.token not in _tokens_of(identity, context):
                problems.append(
                    f"{name}: token {details.token} has no wrapping key {identity[:36]}"
                )
        if details.from_key == details.to_key:
            problems.append(
                "to_key: it is the same; create another one with create-wrapping-key first"
            )
        left = {*_tokens_of(details.from_key, context)} - {*_tokens_of(details.to_key, context)}
        problems += [
            f"token {token} has the first one only: it could sign no longer" for token in left
        ]
        return problems

    def difference(self, details: Rewrap, context: OperationContext) -> list[str]:
        keys = wrapped_by(details.from_key, context)
        lines = [
            f"~ {count(len(keys), 'key')} that {details.from_key} has wrapped",
            f"~ {details.to_key} wraps them, on token {details.token}",
            "  public keys, certificates and states stay as they are",
        ]
        return [*lines, *shortened([f"~ {version.name}" for version in keys], "key")]

    def execute(self, details: Rewrap, work: Work) -> Effects:
        done, context = 0, work.context
        # Again and again: operations that were approved before may create keys meanwhile.
        while keys := wrapped_by(details.from_key, context):
            if wrong := [version.name for version in keys if version.name in context.unaccounted]:
                raise OperatorError(
                    f"{wrong[0]}: the registry has something else of it than the audit log accounts"
                    " for: put its row back, then retry"
                )
            if later := [v.name for v in keys if context.wrapped_since(v) >= work.proposed_at]:
                raise OperatorError(
                    f"{later[0]}: an operation that was proposed later has wrapped it:"
                    " propose this one again"
                )
            with work.admin(details.token) as admin:
                for start in range(0, len(keys), BATCH):
                    part = keys[start : start + BATCH]
                    began = time.monotonic()
                    _save([(each, _anew(each, details, admin, work)) for each in part], work)
                    work.progress(done + start + len(part), done + len(keys))
                    work.rest(time.monotonic() - began)
            done += len(keys)
            context = work.current_context()
        return Effects(result={"wrapping_key": details.to_key, "keys": done})


def _anew(version: KeyVersion, details: Rewrap, admin: TokenAdmin, work: Work) -> WrappedKey:
    """Wraps the key of a version anew, and has it sign that; raises StoppedError, OperatorError."""
    work.check_running()
    if (before := version.wrapped) is None:
        raise OperatorError(f"{version.name} is not wrapped")
    of_key = version.algorithm, version.cka_id, version.spki
    made = admin.wrap_anew(*of_key, before, details.to_key)
    claim = claim_of_wrapped(work.id, version.name, made)
    return made._replace(proof=try_out(admin, replace(version, wrapped=made), says=claim))


def _save(part: Sequence[tuple[KeyVersion, WrappedKey]], work: Work) -> None:
    """Writes a part; a key that was destroyed meanwhile must not keep the others from that."""
    try:
        work.save_wrapped(part)
    except ChangedMeanwhileError:
        if len(part) > 1:
            for one in part:
                _save([one], work)


class DestroyWrappingKey(Details):
    """The id of a wrapping key."""

    wrapping_key: str


class DestroyWrappingKeyKind(OperationKind[DestroyWrappingKey]):
    """Destroys a wrapping key on each of its tokens. This cannot be undone."""

    name = "destroy-wrapping-key"
    details = DestroyWrappingKey

    def problems(self, details: DestroyWrappingKey, context: OperationContext) -> list[str]:
        identity = details.wrapping_key
        tokens = _tokens_of(identity, context, ended=bool(context.executing))
        if not tokens:
            return [f"wrapping_key: there is none {identity[:36]}, or it is destroyed already"]
        problems = [
            f"token {token} holds it and is not here: destroy it at an appliance that has all"
            " of its tokens"
            for token in tokens
            if token not in context.tokens
        ]
        if context.unaccounted:
            problems.append(
                f"the registry has {min(context.unaccounted)} otherwise than the log, so it does"
                " not show what is wrapped by it: put the rows back first"
            )
        if keys := wrapped_by(identity, context):
            problems.append(
                f"{count(len(keys), 'key is', 'keys are')} wrapped by it, such as {keys[0].name}:"
                " wrap them anew with rewrap, or destroy them"
            )
        return problems

    def difference(self, details: DestroyWrappingKey, context: OperationContext) -> list[str]:
        return [
            f"- wrapping key {details.wrapping_key}",
            *(
                f"! it is destroyed on token {token}: copies of what it has wrapped, in backups of"
                " the registry for instance, can never be unwrapped again"
                for token in _tokens_of(details.wrapping_key, context)
            ),
        ]

    def execute(self, details: DestroyWrappingKey, work: Work) -> Effects:
        # First in the registry: an operation that wraps by it meanwhile must not add its keys.
        work.end_wrapping_key(details.wrapping_key)
        for token in _tokens_of(details.wrapping_key, work.context, ended=True):
            with work.admin(token) as admin:
                admin.destroy_wrapping_key(details.wrapping_key)
        return Effects(result={"wrapping_key": details.wrapping_key})


def wrapped_by(identity: str, context: OperationContext) -> list[KeyVersion]:
    """Returns the versions that a wrapping key has wrapped, as the registry has them."""
    return [
        version
        for version in context.state.keys
        if version.wrapped is not None and version.wrapped.wrapping_key == identity
    ]


def _tokens_of(identity: str, context: OperationContext, *, ended: bool = False) -> list[str]:
    """Returns the tokens with a wrapping key, also where its use has ``ended``."""
    keys = context.state.wrapping_keys
    return [key.token for key in keys if key.id == identity and (ended or not key.destroyed)]
