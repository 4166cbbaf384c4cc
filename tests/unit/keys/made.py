"""Key versions that no token has made."""

from signer.model import KeyName, KeyVersion
from tests.stand_ins import key_version


def make(facility: str = "01-001", number: int = 1) -> KeyVersion:
    unique = f"{facility}/{number}"
    return key_version(
        key=KeyName(facility, "records"),
        number=number,
        cka_id=unique.encode(),
        spki=b"\x00spki\xff",
        kid=b"12345678",
        thumbprint=unique,
        created=1.5,
        activate_at=2.25,
    )
