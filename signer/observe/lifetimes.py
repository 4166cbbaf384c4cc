"""Which key versions have used how much of their lifetime (``lifetime_signatures`` of the policy).

Of one appliance: each counts what its own log has.
"""

from collections.abc import Iterator
from typing import NamedTuple

from signer.model import KeyVersion
from signer.policy.usage import Usage
from signer.signing.request import Snapshot


class LifetimeUse(NamedTuple):
    """An active version with a bound: its group, its items so far, and the bound."""

    version: KeyVersion
    group: str
    used: int
    limit: int

    @property
    def share(self) -> float:
        """The part of its lifetime that is used: 1 for all of it."""
        return self.used / self.limit

    def __str__(self) -> str:
        part = f"{self.version.name} has used {int(self.share * 100)} % of its lifetime"
        return f"{part}, {self.used:,} of {self.limit:,} signatures: rotate its key"


def lifetimes(snapshot: Snapshot, usage: Usage, now: float) -> Iterator[LifetimeUse]:
    """Yields the active versions with a bound; ``now`` is in seconds since the epoch."""
    for version in snapshot.keys:
        name, terms = version.key, snapshot.policy.terms_of(version.key)
        if terms is None or terms.lifetime_signatures is None or not version.active(now):
            continue
        used = usage.signed(name.facility, name.key, version.number)
        yield LifetimeUse(version, terms.group or "", used, terms.lifetime_signatures)
