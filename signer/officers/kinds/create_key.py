"""The kinds create-key and new-version, and what all kinds that create keys share."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from signer import __version__
from signer.algorithms import Algorithm
from signer.distinguished_name import parse_name
from signer.errors import OperatorError
from signer.keys import lifecycle
from signer.keys.csr import make_request
from signer.keys.lifecycle import NewKey, TokenAdmin, check_bits, cka_id_of, make_version
from signer.model import Format, KeyName, KeyVersion
from signer.officers.kinds.base import (
    Details,
    Effects,
    Moment,
    OperationKind,
    Pair,
    Work,
    found_problems,
)
from signer.officers.kinds.operation_context import OperationContext, utc
from signer.officers.kinds.storing import (
    changed_storage,
    is_stored,
    place_text,
    storage_problems,
    wrapping_key_for,
)
from signer.officers.possession import signed_form
from signer.policy.rules import Terms
from signer.text import count
from signer.x509 import fingerprint

BATCH = 50  # keys of one transaction; after a crash at most so many are found on the token
_TEST = b"signer.v1 test signature"


class CreateKey(Details):
    """A key and its first version. ``sign_until`` is in seconds since the epoch; 0: no end.

    ``wrapping_key`` is the id of the one that wraps it; empty for a key that stays on the token.
    """

    key: str
    algorithm: str
    bits: int = 0
    token: str = ""
    activate: bool = False
    sign_until: Moment = 0
    subject: str = ""
    wrapping_key: str = ""


class CreateKeyKind(OperationKind[CreateKey]):
    """Creates a key; with ``activate`` it is active at once."""

    name = "create-key"
    details = CreateKey

    def complete(self, details: CreateKey, context: OperationContext) -> CreateKey:
        token = context.token(details.token)
        named = found_problems(lambda: context.key(details.key))  # `problems` reports it
        wrapping_key = "" if named else wrapping_key_for(KeyName.parse(details.key), token, context)
        return details.model_copy(update={"token": token, "wrapping_key": wrapping_key})

    def problems(self, details: CreateKey, context: OperationContext) -> list[str]:
        named = found_problems(lambda: context.key(details.key))
        return [
            *context.token_problems(details.token),
            *_algorithm_problems(details),
            *(named or _name_problems(details.key, context)),
            *storage_problems(details.wrapping_key, details.token, context),
            *([] if named else _storage_problems(details, context)),
            *subject_problems(details.subject),
            *([] if named else _end_problems(details, context)),
        ]

    def difference(self, details: CreateKey, context: OperationContext) -> list[str]:
        bits = f" of {details.bits} bits" if details.bits else ""
        ends = f"until {utc(details.sign_until)}" if details.sign_until else "without an end"
        place = place_text(details.wrapping_key, details.token)
        lines = [
            f"+ {details.key}, a key for {details.algorithm}{bits} {place}",
            f"+ {details.key}/versions/1, "
            + (
                f"ACTIVE at once, {ends}"
                if details.activate
                else "PRE_ACTIVE: it does not sign yet"
            ),
        ]
        if details.subject:
            lines.append(f"+ a certification request for {details.subject}")
        return [*lines, *use_of(KeyName.parse(details.key), context)]

    def fits(self, details: CreateKey, pair: Pair) -> bool:
        version = pair.version
        asked = (details.algorithm, details.token)
        as_asked = (str(version.algorithm), version.token) == asked
        return as_asked and is_stored(version, details.wrapping_key)

    def execute(self, details: CreateKey, work: Work) -> Effects:
        new = NewKey(
            KeyName.parse(details.key),
            Algorithm(details.algorithm),
            details.bits,
            details.wrapping_key,
        )
        with work.admin(details.token) as admin:
            version = make(admin, new, 1, index=0, subject=details.subject, work=work)
            result = transcript(admin, version)
        if details.activate:
            now = work.clock.now()
            version = lifecycle.activate(version, now, details.sign_until or None, now)
        return Effects(added=[version], result=result)


class NewVersion(Details):
    """One more version of a key. The appliance fills in the last four."""

    key: str
    token: str = ""
    subject: str = ""
    version: str = ""
    algorithm: str = ""
    bits: int = 0
    wrapping_key: str = ""


class NewVersionKind(OperationKind[NewVersion]):
    """Creates the next version of a key, PRE_ACTIVE."""

    name = "new-version"
    details = NewVersion

    def complete(self, details: NewVersion, context: OperationContext) -> NewVersion:
        key = context.key(details.key)
        new, number = next_version(key, context.state.keys.versions(key))
        token = context.token(details.token)
        return details.model_copy(
            update={
                "token": token,
                "wrapping_key": wrapping_key_for(key, token, context),
                "version": f"{key}/versions/{number}",
                "algorithm": str(new.algorithm),
                "bits": new.bits,
            }
        )

    def problems(self, details: NewVersion, context: OperationContext) -> list[str]:
        key = context.key(details.key)
        ours = cka_id_of(context.executing, 0) if context.executing else b""
        versions = [v for v in context.state.keys.versions(key) if v.cka_id != ours]
        if not versions:
            return [f"{key} does not exist: create-key creates it"]
        new, number = next_version(key, versions)
        problems = []
        if (details.algorithm, details.bits) != (new.algorithm, new.bits):
            problems.append(
                f"{key} uses {new.algorithm}; algorithm and bits are filled in by the appliance"
            )
        if details.version != f"{key}/versions/{number}":
            problems.append(f"the next version of {key} is {number} now, not {details.version}")
        return [
            *problems,
            *context.token_problems(details.token),
            *storage_problems(details.wrapping_key, details.token, context),
            *changed_storage(details.wrapping_key, key, details.token, context),
            *subject_problems(details.subject),
        ]

    def difference(self, details: NewVersion, context: OperationContext) -> list[str]:
        key = context.key(details.key)
        primary = context.state.keys.primary(key, context.now)
        place = place_text(details.wrapping_key, details.token)
        lines = [f"+ {details.version} {place}, PRE_ACTIVE: it does not sign yet"]
        if details.subject:
            lines.append(f"+ a certification request for {details.subject}")
        lines.append(f"  {primary.name if primary else 'no version'} continues to sign for {key}")
        return lines

    def fits(self, details: NewVersion, pair: Pair) -> bool:
        version = pair.version
        asked = (details.algorithm, details.token)
        as_asked = (str(version.algorithm), version.token) == asked
        return as_asked and is_stored(version, details.wrapping_key)

    def execute(self, details: NewVersion, work: Work) -> Effects:
        new = NewKey(
            KeyName.parse(details.key),
            Algorithm(details.algorithm),
            details.bits,
            details.wrapping_key,
        )
        number = int(details.version.rpartition("/")[2])
        with work.admin(details.token) as admin:
            version = make(admin, new, number, index=0, subject=details.subject, work=work)
            return Effects(added=[version], result=transcript(admin, version))


def make(
    admin: TokenAdmin, new: NewKey, number: int, *, index: int, subject: str, work: Work
) -> KeyVersion:
    """Creates one key version of an operation and its request, and signs with it once.

    ``index`` is its number in the operation, from 0.
    """
    version = make_version(admin, new, number, cka_id_of(work.id, index), work.clock.now())
    if version.wrapped is None:  # else it has signed before it was returned
        try_out(admin, version)
    if subject:
        version = replace(version, request=make_request(admin, version, subject).decode())
    return version


def try_out(
    admin: TokenAdmin, version: KeyVersion, cka_id: bytes | None = None, says: bytes = _TEST
) -> bytes:
    """Signs once and returns the signature; the worker checks it with the pin.

    ``cka_id`` is that of the key on the token, by default where the version was made; ``says`` is
    what it signs. Raises OperatorError.
    """
    algorithm, identifier = version.algorithm, cka_id or version.cka_id
    data = [signed_form(algorithm, says)]
    [signature] = admin.sign(algorithm, identifier, version.spki, data, version.wrapped)
    return signature


def save_made(
    made: Iterable[KeyVersion | None], work: Work, keys: int, steps: int, done: int = 0
) -> None:
    """Saves keys in batches while they are made, also where one fails; None was made before.

    ``keys`` is their number, of which ``done`` exist, and ``steps`` that of the operation's steps.
    """
    batch: list[KeyVersion] = []
    try:
        for version in made:
            if version is not None:
                batch.append(version)
            done += 1
            if len(batch) >= BATCH:
                work.save(batch, ())
                batch = []
                work.progress(done, steps)
    except OperatorError as error:
        raise OperatorError(
            f"{done} of {count(keys, 'key')} were created and stored: {error}; correct the"
            " cause, then retry this operation: it continues with the next key"
        ) from error
    finally:
        if batch:
            work.save(batch, ())
        work.progress(done, steps)


def transcript(admin: TokenAdmin, version: KeyVersion) -> dict[str, Any]:
    """Returns what the transcript of a ceremony holds of a new key."""
    wrapped = version.wrapped
    stored = (
        {"attributes": admin.attributes(version.cka_id)}
        if wrapped is None
        else {
            "attributes": {"sensitive": True, "extractable": False},  # as it was unwrapped
            "wrapping_key": wrapped.wrapping_key,
            "wrap_mechanism": str(wrapped.mechanism),
            "wrapped_sha256": wrapped.sha256.hex(),
        }
    )
    return {
        "key_version": version.name,
        "algorithm": str(version.algorithm),
        "public_key_sha256": fingerprint(version.spki),
        "jwk_thumbprint": version.thumbprint,
        "cka_id": version.cka_id.hex(),
        "token": admin.describe(),
        **stored,
        "certification_request": version.request,
        "software": f"signer {__version__}",
    }


def next_version(key: KeyName, versions: Sequence[KeyVersion]) -> tuple[NewKey, int]:
    """Returns the next version's key and number; its algorithm and length are the newest's."""
    if not versions:
        return NewKey(key, Algorithm.ES256), 1  # `problems` refuses it: the key does not exist
    newest = versions[-1]
    public = load_der_public_key(newest.spki)
    bits = public.key_size if isinstance(public, rsa.RSAPublicKey) else 0
    return NewKey(key, newest.algorithm, bits), newest.number + 1


def use_of(key: KeyName, context: OperationContext) -> list[str]:
    """Returns what the policy in force lets a key sign, as a line of a difference."""
    terms = context.policy.policy.terms_of(key)
    if terms is None:
        return [f"! facility {key.facility} is not in the policy: nobody may use the key"]
    formats = ", ".join(sorted(terms.formats)) or "nothing: it is not listed"
    return [f"  by the policy it signs {formats}"]


def hcert_terms(key: KeyName, context: OperationContext) -> Terms | None:
    """Returns the terms of a key that signs HCERT, None for other keys."""
    terms = context.policy.policy.terms_of(key)
    return terms if terms is not None and Format.HCERT in terms.formats else None


def _algorithm_problems(details: CreateKey) -> list[str]:
    if details.algorithm not in list(Algorithm):
        return [f"algorithm: must be one of {', '.join(Algorithm)}"]
    new = NewKey(KeyName("f", "k"), Algorithm(details.algorithm), details.bits)
    return found_problems(lambda: check_bits(new))


def _storage_problems(details: CreateKey, context: OperationContext) -> list[str]:
    key = KeyName.parse(details.key)
    return changed_storage(details.wrapping_key, key, details.token, context)


def _name_problems(name: str, context: OperationContext) -> list[str]:
    key = context.key(name)
    ours = cka_id_of(context.executing, 0) if context.executing else b""
    if any(version.cka_id != ours for version in context.state.keys.versions(key)):
        return [f"{key} exists: new-version creates another version of it"]
    return []


def _end_problems(details: CreateKey, context: OperationContext) -> list[str]:
    if details.sign_until and not details.activate:
        return ["sign_until: applies to an active key; give it when you activate this one"]
    if details.sign_until and details.sign_until <= context.now:
        return ["sign_until: is in the past"]
    if details.activate and hcert_terms(context.key(details.key), context):
        return ["activate: a key for HCERT needs its certificate first; activate it after that"]
    return []


def subject_problems(subject: str, like: str = "CN=DCC 1,O=Ministry,C=VN") -> list[str]:
    """Returns why a subject, which may be empty, is not a distinguished name."""
    if braces := re.findall(r"\{[^{}]*\}?|\}", subject):
        return [f"subject: {braces[0]} is not replaced by anything; write it like '{like}'"]
    try:
        if subject:
            parse_name(subject)
    except ValueError as error:
        return [f"subject: {error}; write it like '{like}'"]
    return []
