"""Whether rules that stand together go together: formats, algorithms, rights and content.

A key that signs HCERT signs nothing else. In COSE_SIGN1 the caller chooses the
payload under the very header that an HCERT has, and in MESSAGE and DIGEST every
byte: one such signature could stand in any health certificate, so that claims,
content rules and usages would bind nobody. JWS and its required members fare
the same beside MESSAGE and DIGEST, in which a JWS can be made by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from signer.algorithms import PROPERTIES
from signer.errors import Violation
from signer.model import Format
from signer.policy.document import Profile, Rules
from signer.policy.rules import Terms

BLIND = frozenset({Format.DIGEST})
"""Formats of which the appliance sees only a digest."""

CONTENT_OF: Mapping[str, Format] = {
    "countries": Format.HCERT,
    "issuers": Format.HCERT,
    "certificate_types": Format.HCERT,
    "identifier_prefix": Format.HCERT,
    "future_dates": Format.HCERT,
    "required_members": Format.JWS,
}
"""Content rules, and the one format whose payloads each looks at."""

_FREE = frozenset({Format.MESSAGE, Format.DIGEST})
"""Formats in which the caller chooses every byte that is signed."""


def check_profile(path: str, rules: Profile, problems: list[Violation]) -> None:
    """Checks that formats, algorithms and rights go together (DESIGN section 4)."""
    found = [*_misfits_of_blind(rules), *_misfits_of_hcert(rules)]
    start, end = rules.valid_from, rules.valid_until
    if start is not None and end is not None and start >= end:
        found.append(("valid_until", "is not after valid_from"))
    problems.extend(Violation(f"{path}.{name}", text) for name, text in found)


def check_use(
    path: str, rules: Rules, formats: frozenset[Format], problems: list[Violation]
) -> None:
    """Checks that what ``rules`` say of a format can matter under these ``formats``.

    What is inherited is not looked at: a key may well use only a part of the
    formats around it.
    """
    stated = [("hcert", Format.HCERT)] if rules.hcert is not None else []
    if rules.content is not None:
        stated += [
            (f"content.{name}", used_by)
            for name, used_by in CONTENT_OF.items()
            if getattr(rules.content, name) is not None
        ]
    problems.extend(
        Violation(f"{path}.{name}", f"is of no use: {used_by} is not in formats")
        for name, used_by in stated
        if used_by not in formats
    )


def mixes_hcert(formats: frozenset[Format]) -> bool:
    """Whether HCERT stands beside other formats: good for choosing from, not for a key."""
    return Format.HCERT in formats and len(formats) > 1


def of_unlisted_keys(terms: Terms) -> Terms:
    """Returns what a facility's terms leave to keys without rules of their own.

    Formats that no key may have together are for its listed keys to choose
    from: a key that does not choose has none.
    """
    return replace(terms, formats=frozenset()) if mixes_hcert(terms.formats) else terms


def check_key(path: str, terms: Terms, problems: list[Violation]) -> None:
    """Checks that a key that signs HCERT, by the terms it has at ``path``, signs nothing else."""
    if mixes_hcert(terms.formats):
        others = ", ".join(sorted(terms.formats - {Format.HCERT}))
        text = (
            f"HCERT stands beside {others}, but a key that signs HCERT signs nothing else: "
            "state formats: [HCERT] here, or leave HCERT out and use another key for it"
        )
        problems.append(Violation(f"{path}.formats", text))


def check_members(in_use: Iterable[Terms], problems: list[Violation]) -> None:
    """Checks that required members cannot be evaded, in all terms that some key signs under.

    It is told where the rules meet, once for all facilities and keys inside.
    """
    problems.extend(dict.fromkeys(_evaded(terms) for terms in in_use if _evadable(terms)))


def _evadable(terms: Terms) -> bool:
    if not terms.content.required_members or mixes_hcert(terms.formats):  # see check_key
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
        f"required_members is void where {free} can sign a JWS made by hand: "
        "allow JWS without it, or give it a key of its own",
    )


def _requires_members(rules: Rules) -> bool:
    return rules.content is not None and rules.content.required_members is not None


def _misfits_of_blind(rules: Profile) -> Iterator[tuple[str, str]]:
    blind = rules.blind or frozenset()
    for item in sorted((rules.formats & BLIND) - blind):
        yield "formats", f"{item} is signing unseen: list it in blind too, if that is meant"
    for item in sorted(blind - BLIND):
        yield "blind", f"{item} is not a blind format: leave it out"
    for item in sorted((blind & BLIND) - rules.formats):
        yield "blind", f"{item} is not in formats"
    if Format.DIGEST in rules.formats:
        for algorithm in sorted(a for a in rules.algorithms if PROPERTIES[a].hash_name is None):
            text = f"{algorithm} cannot sign DIGEST: put DIGEST into a profile of its own"
            yield "algorithms", text


def _misfits_of_hcert(rules: Profile) -> Iterator[tuple[str, str]]:
    if Format.HCERT not in rules.formats:
        return
    for algorithm in sorted(a for a in rules.algorithms if not PROPERTIES[a].hcert):
        yield "algorithms", f"{algorithm} does not sign HCERT, only ES256 and PS256 do"
    hcert = rules.hcert
    if hcert is None:
        yield "hcert", "is missing: HCERT needs issuer and validity_days"
    elif hcert.issuer is None or hcert.validity_days is None:
        yield "hcert", "should state both issuer and validity_days"
