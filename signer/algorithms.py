"""The closed list of signature algorithms, and one row for each: data, no functions."""

import enum
from collections.abc import Mapping
from typing import NamedTuple


class Algorithm(enum.StrEnum):
    """A signature algorithm; the names are those of JOSE (RFC 7518, RFC 8037)."""

    ES256 = "ES256"
    ES384 = "ES384"
    RS256 = "RS256"
    PS256 = "PS256"
    EDDSA = "EdDSA"


class Properties(NamedTuple):
    """What the rest of the product needs to know of an algorithm.

    ``hash_name``: for hashlib; None if the HSM takes the message itself, so that
    there is nothing to sign in the format DIGEST.
    ``signature_bytes``: length of a raw signature; None: as long as the RSA modulus.
    ``curve``: the elliptic curve (SEC 2, RFC 8032); None for RSA.
    ``cose``: number in IANA's registry "COSE Algorithms".
    ``mechanism``: name in PKCS#11 v3.1, without CKM.
    ``hcert``: whether the EU's specification of health certificates (HCERT) allows it.
    """

    hash_name: str | None
    signature_bytes: int | None
    curve: str | None
    cose: int
    mechanism: str
    hcert: bool


# fmt: off
PROPERTIES: Mapping[Algorithm, Properties] = {
    #                            hash      bytes curve        COSE  PKCS#11         HCERT
    Algorithm.ES256: Properties("sha256", 64,   "secp256r1", -7,   "ECDSA",        True),
    Algorithm.ES384: Properties("sha384", 96,   "secp384r1", -35,  "ECDSA",        False),
    Algorithm.RS256: Properties("sha256", None, None,        -257, "RSA_PKCS",     False),
    Algorithm.PS256: Properties("sha256", None, None,        -37,  "RSA_PKCS_PSS", True),
    Algorithm.EDDSA: Properties(None,     64,   "ed25519",   -8,   "EDDSA",        False),
}
# fmt: on

RSA_BITS = (2048, 3072, 4096)  # of moduli with which keys are created, imported and used
