"""Which officers can sign operations now, by their certificates. Pure."""

from dataclasses import dataclass
from typing import Self

from cryptography import x509

from signer.officers.approval import Officers

DAY = 86_400
SOON_DAYS = 30
"""A certificate that ends within so many days is warned of."""


@dataclass(frozen=True, slots=True)
class Validity:
    """The officers with a valid certificate and its end; those with one that ended, or is early.

    ``ending``: of the valid ones those that end within ``SOON_DAYS``, and when. Ends are in
    seconds since the epoch.
    """

    valid: dict[str, float]
    ended: frozenset[str]
    early: frozenset[str]
    ending: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, officers: Officers, now: float) -> Self:
        """Sorts officers by their certificates (DER) at ``now``, in seconds since the epoch."""
        valid, ended, early = dict[str, float](), set[str](), set[str]()
        for who, der in officers.items():
            certificate = x509.load_der_x509_certificate(der)
            end = certificate.not_valid_after_utc.timestamp()
            if now > end:
                ended.add(who)
            elif now < certificate.not_valid_before_utc.timestamp():
                early.add(who)
            else:
                valid[who] = end
        soon = now + SOON_DAYS * DAY
        ending = tuple((who, end) for who, end in sorted(valid.items()) if end < soon)
        return cls(valid, frozenset(ended), frozenset(early), ending)

    @property
    def next_end(self) -> float | None:
        """When the next certificate that is valid ends; None if none is valid."""
        return min(self.valid.values(), default=None)
