"""Whose signed records count beside a certificate, and the link that the log gets of them."""

import hashlib
from collections.abc import Callable
from functools import cache, lru_cache

from signer.algorithms import PROPERTIES, Algorithm
from signer.errors import invalid
from signer.format_terms import Cosigned, Cosigner, CosignTerms
from signer.hsm.mechanisms import Verifier
from signer.model import Format, KeyState
from signer.policy.rules import Terms
from signer.signing.request import BatchRequest, Snapshot

_RELIED_ON = (KeyState.ACTIVE, KeyState.DEACTIVATED)
"""States of a version whose signatures hold; in any other it was stopped, or has not begun."""


def cosigned_of(
    snapshot: Snapshot, request: BatchRequest, terms: Terms, now: float
) -> Cosigned | None:
    """Returns the signed records of a batch, if its key demands them; None if it does not.

    Raises CallError if there are not as many as payloads, or some where none are looked at.
    """
    given, wanted = len(request.cosignatures), len(request.payloads)
    demanded = terms.cosigning if request.format is Format.HCERT else None
    if demanded is None:
        if given:
            raise invalid("cosignatures", "are for keys whose policy demands them: send none")
        return None
    if given != wanted:
        raise invalid(
            "cosignatures",
            f"has {given} items for {wanted} payloads: {demanded.rule} demands one for each",
        )
    return Cosigned(demanded, request.cosignatures, _finder(snapshot, demanded, now))


def _finder(snapshot: Snapshot, terms: CosignTerms, now: float) -> Callable[[str], Cosigner | str]:
    """Returns what finds the key of a record, or says why none may be relied on."""

    @cache
    def find(kid: str) -> Cosigner | str:
        version = snapshot.keys.by_thumbprint(kid)
        if version is None:
            return "no key of this appliance has its key id"
        facility = snapshot.policy.facilities.get(version.key.facility)
        if facility is None or facility.profile not in terms.profiles:
            return f"the policy does not let {version.key.facility} co-sign"
        if Format.JWS not in facility.terms_of(version.key.key).formats:
            return f"{version.key} is not a key for JWS"
        if reason := snapshot.suspended.reason(version.key.facility):
            return reason
        if (state := version.state_at(now)) not in _RELIED_ON:
            return f"{version.name} is {state}"
        return Cosigner(version.algorithm, _check(version.algorithm, version.spki))

    return find


@lru_cache(maxsize=4096)
def _check(algorithm: Algorithm, spki: bytes) -> Callable[[bytes, bytes], bool]:
    verifier, name = Verifier(algorithm, spki), PROPERTIES[algorithm].hash_name

    def correct(signed: bytes, signature: bytes) -> bool:
        data = hashlib.new(name, signed).digest() if name else signed
        return verifier.correct(data, signature)

    return correct
