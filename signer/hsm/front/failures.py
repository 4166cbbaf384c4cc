"""Why items have no signature, as callers hear it. Operators read causes in status and logs."""

from __future__ import annotations

from signer.errors import Failure, Reason
from signer.hsm.frames import Verdict
from signer.model import KeyVersion

_LONG = 60.0
"""Seconds to wait before trying what only an operator can mend."""

NOT_SERVING = Failure(
    Reason.HSM_UNAVAILABLE, "the HSM does not serve now: try again later", retry_after=5.0
)

WRONG = Failure(
    Reason.HSM_UNAVAILABLE,
    "the HSM returned a wrong signature: the key is stopped",
    retry_after=_LONG,
)


def refusal(verdict: Verdict, version: KeyVersion) -> Failure:
    """Returns why a chunk was not signed at all."""
    text = {
        Verdict.NO_KEY: f"the HSM does not hold the key of {version.name}",
        Verdict.REFUSED: f"the HSM refuses to sign with the key of {version.name}",
        Verdict.UNSUITABLE: f"the public key pinned for {version.name} is none for its algorithm",
    }[verdict]
    return Failure(Reason.HSM_UNAVAILABLE, text, retry_after=_LONG)
