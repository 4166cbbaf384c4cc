"""Charges batches to the quotas of a facility, and to the lifetime of a key version."""

from signer.errors import CallError, Reason, invalid
from signer.events import Events, QuotaRefused
from signer.model import KeyVersion
from signer.policy.lifetime import LifetimeRefusal, VersionCharge
from signer.policy.rules import Terms
from signer.policy.usage import QuotaRefusal, Usage
from signer.text import count, utc


class Charging:
    """Counts what is asked, before it is signed. What was counted is never given back."""

    def __init__(self, usage: Usage, events: Events) -> None:
        self._usage, self._events = usage, events

    def charge(
        self,
        terms: Terms,
        version: KeyVersion,
        items: int,
        recorded: int,
        now: float,
        *,
        says: bool,
    ) -> None:
        """Counts ``items``; raises CallError if they do not fit, and then counts nothing.

        ``recorded`` of them are in calls with an item that ``version`` signs: the log gets an
        intent for these, and they count against its lifetime. ``says``: a refusal is that of a
        call, and is reported.
        """
        limit = terms.lifetime_signatures
        charge = VersionCharge(version.key.key, version.number, recorded, limit)
        refusal = self._usage.charge(terms.facility, terms.quotas, items, now, charge)
        if isinstance(refusal, LifetimeRefusal):
            raise _exhausted(version, terms, recorded, refusal)
        if isinstance(refusal, QuotaRefusal):
            if says and refusal.retry_after is not None:
                self._events.emit(QuotaRefused(terms.group or "", refusal.quota.window))
            raise _over_quota(terms, items, refusal, now)


def _exhausted(
    version: KeyVersion, terms: Terms, items: int, refusal: LifetimeRefusal
) -> CallError:
    left = max(0, refusal.limit - refusal.used)
    metadata = {
        "rule": terms.rule("lifetime_signatures"),
        "key_version": version.name,
        "limit": str(refusal.limit),
        "used": str(refusal.used),
        "left": str(left),
    }
    text = (
        f"{version.name} may make {count(refusal.limit, 'signature')} in its lifetime, of which"
        f" {count(left, 'is left', 'are left')} for {count(items, 'item')}: nothing was signed;"
        " have officers rotate the key (`signer keys rotate`)"
    )
    return CallError(Reason.KEY_VERSION_EXHAUSTED, text, metadata)


def _over_quota(terms: Terms, items: int, refusal: QuotaRefusal, now: float) -> CallError:
    quota = refusal.quota
    if refusal.retry_after is None:
        return invalid("payloads", f"has {count(items, 'item')}, the quota is {quota}: split it")
    used, resets = refusal.used, utc(round(now + refusal.retry_after))
    left = max(0, quota.limit - used)
    metadata = {
        "rule": terms.rule("quotas"),
        "window": quota.window,
        "limit": str(quota.limit),
        "used": str(used),
        "left": str(left),
        "resets": resets,
    }
    text = (
        f"the quota of {quota} has no room for {items} more: {count(used, 'is', 'are')} used and"
        f" {left} left until {resets}; nothing was signed"
    )
    return CallError(Reason.QUOTA_EXCEEDED, text, metadata, retry_after=refusal.retry_after)
