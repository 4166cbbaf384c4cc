"""Whose signed records count beside a certificate, and which signatures are known to be right.

A facility's record was mostly signed by this appliance a moment before, and its signature
checked by the worker that made it. Such a signature is not verified again: to do so takes longer
than all else that a certificate needs (ADR 49).
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from hashlib import new, sha256

from signer.algorithms import PROPERTIES, Algorithm
from signer.errors import invalid
from signer.event_loop import Turns
from signer.format_terms import Cosigned, Cosigner, CosignTerms
from signer.hsm.front.chunks import SignJob
from signer.hsm.mechanisms import Verifier
from signer.model import Format, KeyState
from signer.policy.rules import Policy, Terms
from signer.signing.request import BatchRequest, Snapshot
from signer.text import count

KNOWN = 16_384
"""The newest signatures, and about as many before them, are known; each takes about 150 bytes."""
_RELIED_ON = (KeyState.ACTIVE, KeyState.DEACTIVATED)
"""States of a version whose signatures hold; in any other it was stopped, or has not begun."""


class Cosigners:
    """The facilities' keys whose records count, and their newest signatures. For the event loop."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._newer: set[bytes] = set()
        self._older: set[bytes] = set()

    def cosigned(
        self, snapshot: Snapshot, request: BatchRequest, terms: Terms, now: float
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
                f"has {count(given, 'item')} for {count(wanted, 'payload')}: {demanded.rule}"
                " demands one for each",
            )
        return Cosigned(demanded, request.cosignatures, self._finder(snapshot, demanded, now))

    async def signed(
        self, principal: str, policy: Policy, job: SignJob, signatures: Sequence[bytes]
    ) -> None:
        """Takes what was signed in JWS and checked; an item without a signature has b"".

        It is known from now on if the facility's records may count.
        """
        version = job.version
        profile = policy.facilities[version.key.facility].profile
        if profile not in policy.cosigners:
            return

        def keep(start: int, stop: int) -> None:
            made = zip(job.inputs[start:stop], signatures[start:stop], strict=True)
            self._newer |= {_name(version.spki, data, each) for data, each in made if each}
            if len(self._newer) >= KNOWN:
                self._newer, self._older = set(), self._newer

        await self._turns.each(principal, job.inputs, keep)

    def _finder(
        self, snapshot: Snapshot, terms: CosignTerms, now: float
    ) -> Callable[[str], Cosigner | str]:
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
            return Cosigner(version.algorithm, self._check(version.algorithm, version.spki))

        return find

    def _check(self, algorithm: Algorithm, spki: bytes) -> Callable[[bytes, bytes], bool]:
        """Returns the check of a key: whether it has made a signature over these bytes."""
        hash_name = PROPERTIES[algorithm].hash_name

        def correct(signed: bytes, signature: bytes) -> bool:
            data = new(hash_name, signed).digest() if hash_name else signed
            name = _name(spki, data, signature)
            if name in self._newer or name in self._older:
                return True
            return _verifier(algorithm, spki).correct(data, signature)

        return correct


_verifier = lru_cache(maxsize=4096)(Verifier)


def _name(spki: bytes, data: bytes, signature: bytes) -> bytes:
    """Names a signature: key, signed data and signature, of which the key says the lengths."""
    return sha256(b"".join((spki, data, signature))).digest()
