"""Key versions that no token has made."""

from __future__ import annotations

from signer.algorithms import Algorithm
from signer.model import KeyName, KeyState, KeyVersion


def make(facility: str = "01-001", number: int = 1) -> KeyVersion:
    unique = f"{facility}/{number}"
    return KeyVersion(
        key=KeyName(facility, "records"),
        number=number,
        algorithm=Algorithm.ES256,
        state=KeyState.ACTIVE,
        token="t",
        cka_id=unique.encode(),
        spki=b"\x00spki\xff",
        certificate=None,
        kid=b"12345678",
        thumbprint=unique,
        created=1.5,
        activate_at=2.25,
        sign_until=None,
    )
