"""Whether rules are consistent with each other: formats, algorithms and content.

A key for HCERT has no other format. In COSE_SIGN1 the caller chooses the payload under the
same header that an HCERT has, and in MESSAGE and DIGEST every byte: such a signature could
be put into any health certificate, past all claims, content rules and key usages. Nor has a key
for SHC: its issuer is the policy's, and verifiers trust the key for all that it signs. With a key
for TIMESTAMP another format would sign times of the caller's choice. In the same way MESSAGE and
DIGEST can sign a JWS without the members that JWS requires.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from signer.algorithms import PROPERTIES, Algorithm
from signer.errors import Violation
from signer.format_terms import ContentRules, HcertClaim
from signer.model import Format
from signer.policy.document import Content, Profile, Rules
from signer.policy.rules import Terms

BLIND = frozenset({Format.DIGEST, Format.CMS_DIGEST})  # the appliance sees only a digest

ALONE = frozenset({Format.HCERT, Format.SHC, Format.TIMESTAMP})
"""Formats whose claims are the policy's: a key for one of them has no other format."""

CONTENT_OF: Mapping[str, frozenset[Format]] = {
    **dict.fromkeys(Content.model_fields, frozenset({Format.HCERT})),
    "required_members": frozenset({Format.JWS}),
    "qr_level": frozenset({Format.HCERT, Format.SHC}),
}
"""Content rules, and the formats to whose payloads each applies."""

_STAMPING = frozenset({Algorithm.ES256, Algorithm.ES384, Algorithm.RS256})
_FREE = frozenset({Format.MESSAGE, Format.DIGEST})  # the caller chooses every signed byte


def check_profile(path: str, rules: Profile, problems: list[Violation]) -> None:
    """Checks that formats, algorithms, blind, hcert and times are consistent."""
    texts = [*_blind_problems(rules), *_hcert_problems(rules), *_shc_problems(rules)]
    texts += _timestamp_problems(rules)
    cosigning = rules.cosigning
    if cosigning is not None and None in (cosigning.profiles, cosigning.members):
        texts.append(("cosigning", "should state both profiles and members"))
    start, end = rules.valid_from, rules.valid_until
    if start is not None and end is not None and start >= end:
        texts.append(("valid_until", "is not after valid_from"))
    problems.extend(Violation(f"{path}.{name}", text) for name, text in texts)


def check_use(
    path: str, rules: Rules, formats: frozenset[Format], problems: list[Violation]
) -> None:
    """Checks that each format-specific rule stated here applies to one of ``formats``.

    Inherited rules are not checked: a key may use only some of its facility's formats.
    """
    stated = [("hcert", frozenset({Format.HCERT}))] if rules.hcert is not None else []
    stated += [("shc", frozenset({Format.SHC}))] if rules.shc is not None else []
    if rules.timestamp is not None:
        stated.append(("timestamp", frozenset({Format.TIMESTAMP})))
    if rules.cosigning is not None:
        stated.append(("cosigning", frozenset({Format.HCERT})))
    if rules.content is not None:
        stated += [
            (f"content.{name}", used_by)
            for name, used_by in CONTENT_OF.items()
            if getattr(rules.content, name) is not None
        ]
    problems.extend(
        Violation(
            f"{path}.{name}", f"has no effect: {' or '.join(sorted(used_by))} is not in formats"
        )
        for name, used_by in stated
        if not used_by & formats
    )


def check_claims(
    path: str, stated: Content, content: ContentRules, problems: list[Violation]
) -> None:
    """Checks that what HCERTs may be about has the rules it needs, in the terms at ``path``.

    ``stated`` is what is written there, ``content`` what is in force.
    """
    claims, where = content.claims, f"{path}.content"
    if {HcertClaim.DCC, HcertClaim.DVC} <= claims:
        text = "has DCC and DVC, which are both objects: allow one of them, and links beside it"
        problems.append(Violation(f"{where}.claims", text))
    for claim, name, given in (
        (HcertClaim.VHL, "link_hosts", bool(content.link_hosts)),
        (HcertClaim.DVC, "dvc_schema", content.schema is not None),
    ):
        if claim in claims and not given:
            problems.append(Violation(f"{where}.{name}", f"is missing: the claim {claim} needs it"))
        elif getattr(stated, name) is not None and claim not in claims:
            text = f"has no effect: {claim} is not in claims"
            problems.append(Violation(f"{where}.{name}", text))


def mixes_certificates(formats: frozenset[Format]) -> bool:
    """Whether one of ALONE is combined with other formats: a facility may, a key must not."""
    return bool(ALONE & formats) and len(formats) > 1


def of_unlisted_keys(terms: Terms) -> Terms:
    """Returns the terms of keys that the facility does not list.

    Where the facility combines one of ALONE with other formats, such a key has no format: only a
    listed key can choose.
    """
    return replace(terms, formats=frozenset()) if mixes_certificates(terms.formats) else terms


def check_key(path: str, terms: Terms, problems: list[Violation]) -> None:
    """Checks that a key for one of ALONE, by its terms at ``path``, has no other format."""
    if mixes_certificates(terms.formats):
        alone = min(terms.formats & ALONE)
        others = ", ".join(sorted(terms.formats - {alone}))
        text = (
            f"{alone} is listed with {others}, but a key for {alone} must have no other format: "
            f"state formats: [{alone}] here, or omit {alone} and use another key for it"
        )
        problems.append(Violation(f"{path}.formats", text))


def check_members(in_use: Iterable[Terms], problems: list[Violation]) -> None:
    """Checks that required members cannot be evaded, in the terms of every key.

    A problem is reported at the level that combines the rules, once for everything below.
    """
    problems.extend(dict.fromkeys(_evaded(terms) for terms in in_use if _evadable(terms)))


def _evadable(terms: Terms) -> bool:
    if not terms.content.required_members or mixes_certificates(terms.formats):  # see check_key
        return False
    return Format.JWS in terms.formats and not _FREE.isdisjoint(terms.formats)


def _evaded(terms: Terms) -> Violation:
    meeting = next(
        level
        for level in reversed(terms.levels)
        if level.rules.formats is not None or _requires_members(level.rules)
    )
    name = "content.required_members" if _requires_members(meeting.rules) else "formats"
    free = ", ".join(sorted(terms.formats & _FREE))
    return Violation(
        f"{meeting.path}.{name}",
        f"required_members has no effect where {free} can sign a hand-made JWS: "
        "omit it, or use another key for JWS",
    )


def _requires_members(rules: Rules) -> bool:
    return rules.content is not None and rules.content.required_members is not None


def _blind_problems(rules: Profile) -> Iterator[tuple[str, str]]:
    blind = rules.blind or frozenset()
    for item in sorted((rules.formats & BLIND) - blind):
        yield "formats", f"{item} signs unseen content: if that is intended, list it in blind too"
    for item in sorted(blind - BLIND):
        yield "blind", f"{item} is not a blind format: omit it"
    for item in sorted((blind & BLIND) - rules.formats):
        yield "blind", f"{item} is not in formats"
    if Format.DIGEST in rules.formats:
        for algorithm in sorted(a for a in rules.algorithms if PROPERTIES[a].hash_name is None):
            text = f"{algorithm} cannot sign DIGEST: put DIGEST into a profile of its own"
            yield "algorithms", text


def _hcert_problems(rules: Profile) -> Iterator[tuple[str, str]]:
    if Format.HCERT not in rules.formats:
        return
    for algorithm in sorted(a for a in rules.algorithms if not PROPERTIES[a].hcert):
        yield "algorithms", f"{algorithm} does not sign HCERT, only ES256 and PS256 do"
    hcert = rules.hcert
    if hcert is None:
        yield "hcert", "is missing: HCERT needs issuer and validity_days"
    elif hcert.issuer is None or hcert.validity_days is None:
        yield "hcert", "should state both issuer and validity_days"


def _shc_problems(rules: Profile) -> Iterator[tuple[str, str]]:
    if Format.SHC not in rules.formats:
        return
    if Algorithm.ES256 not in rules.algorithms:
        yield "algorithms", "SHC is signed with ES256 only: add it"
    if rules.shc is None or rules.shc.issuer is None:
        yield "shc", "is missing: SHC needs an issuer"


def _timestamp_problems(rules: Profile) -> Iterator[tuple[str, str]]:
    if Format.TIMESTAMP not in rules.formats:
        return
    if not rules.algorithms & _STAMPING:
        names = ", ".join(sorted(_STAMPING))
        yield "algorithms", f"TIMESTAMP is signed with one of {names}: add one"
    terms = rules.timestamp
    if terms is None:
        yield "timestamp", "is missing: TIMESTAMP needs policy and accuracy_seconds"
    elif terms.policy is None or terms.accuracy_seconds is None:
        yield "timestamp", "should state both policy and accuracy_seconds"
