"""From the document to the policy in force, once per load.

A profile gives terms; a facility narrows them, and a key narrows its facility's. What
would widen is refused, so that a profile shows the most that any of its facilities may do.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from pydantic import ValidationError

from signer.errors import Violation
from signer.format_terms import ContentSchema
from signer.model import IDENTIFIER, Role
from signer.policy.document import FacilityRules, GroupRules, Profile, Rules, StaffRules
from signer.policy.fit import (
    check_claims,
    check_key,
    check_members,
    check_profile,
    check_use,
    of_unlisted_keys,
)
from signer.policy.narrow import narrow, profile_terms
from signer.policy.rules import Facility, Group, Policy, Terms
from signer.policy.values import serials
from signer.strict import StrictModel, problems_of
from signer.text import dotted

P = TypeVar("P", bound=StrictModel)

SECTIONS = ("roles", "denied_certificates", "schemas", "groups", "profiles", "facilities")
REQUIRED = ("profiles", "facilities")  # a truncated file must not be a policy


def compile_policy(
    document: Mapping[str, object], sha256: str, problems: list[Violation]
) -> Policy:
    """Returns the policy of a document of plain values (dict, list, str, int, bool).

    Mistakes are added to ``problems``; if there are any, the policy must not be used. A part
    with a mistake is left out, so that mistakes in other parts are reported too.
    """
    _check_sections(document, problems)
    group_rules = _section(document, "groups", GroupRules, problems)
    profiles: dict[str, Terms] = {}
    schemas = _schemas(document, problems)
    for name, profile in _section(document, "profiles", Profile, problems).items():
        profiles[name] = _profile(f"profiles.{name}", profile, schemas, problems)
        _check_cosigners(f"profiles.{name}", profile, document, problems)
    facilities: dict[str, Facility] = {}
    for name, rules in _section(document, "facilities", FacilityRules, problems).items():
        _check_names(f"facilities.{name}", rules, document, problems)
        if rules.profile in profiles:
            facilities[name] = _facility(name, rules, profiles[rules.profile], problems)
    in_use = [terms for item in facilities.values() for terms in (item.terms, *item.keys.values())]
    check_members(in_use, problems)
    cosigning = [terms.cosigning.profiles for terms in in_use if terms.cosigning is not None]
    groups = _groups(group_rules, facilities)
    facilities_of = _inverted({name: item.clients for name, item in facilities.items()})
    groups_of = _inverted({name: item.clients for name, item in groups.items() if item.facilities})
    staff = _staff(document, problems)
    _check_apart(staff, facilities, groups, problems)
    return Policy(
        sha256=sha256,
        roles=dict.fromkeys((*facilities_of, *groups_of), frozenset({Role.ISSUER})) | staff,
        denied_certificates=_denied(document, problems),
        groups=groups,
        facilities=facilities,
        facilities_of=facilities_of,
        groups_of=groups_of,
        cosigners=frozenset[str]().union(*cosigning),
    )


def _check_sections(document: Mapping[str, object], problems: list[Violation]) -> None:
    text = f"is not known here; the sections are {', '.join(SECTIONS)}"
    problems.extend(Violation(name, text) for name in sorted(document.keys() - set(SECTIONS)))
    problems.extend(
        Violation(name, f"is missing; write {name}: {{}} if there are none")
        for name in REQUIRED
        if name not in document
    )


def _section(
    document: Mapping[str, object], section: str, kind: type[P], problems: list[Violation]
) -> dict[str, P]:
    """Returns the valid parts of a section, by their ids."""
    parts: dict[str, P] = {}
    stated = document.get(section, {})
    if not isinstance(stated, dict):
        problems.append(Violation(section, "should be a mapping of names to values"))
        return parts
    for name, raw in stated.items():
        path = f"{section}.{name}"
        if not _is_identifier(path, name, problems):
            continue
        try:
            parts[name] = kind.model_validate(raw)
        except ValidationError as error:
            problems.extend(problems_of(error, path))
    return parts


def _is_identifier(path: str, name: str, problems: list[Violation]) -> bool:
    if IDENTIFIER.fullmatch(name):
        return True
    text = "is not an id: use 1 to 63 of a-z, 0-9, '.', '_', '-'; begin and end with a-z or 0-9"
    problems.append(Violation(path, text))
    return False


def _schemas(document: Mapping[str, object], problems: list[Violation]) -> dict[str, ContentSchema]:
    """Returns the JSON schemas of payloads, by their names."""
    stated = document.get("schemas", {})
    if not isinstance(stated, dict):
        problems.append(Violation("schemas", "should be a mapping of names to JSON schemas"))
        return {}
    if not stated:
        return {}
    # Only now: its packages take longer to load than a thousand facilities.
    from signer.policy.json_schema import read_schema  # noqa: PLC0415

    schemas = {}
    for name, schema in stated.items():
        if _is_identifier(f"schemas.{name}", name, problems):
            try:
                schemas[name] = read_schema(name, schema)
            except ValueError as error:
                problems.append(Violation(f"schemas.{name}", str(error)))
    return schemas


def _profile(
    path: str, rules: Profile, schemas: Mapping[str, ContentSchema], problems: list[Violation]
) -> Terms:
    check_profile(path, rules, problems)
    check_use(path, rules, rules.formats, problems)
    terms = profile_terms(path, rules, problems, schemas)
    if rules.content is not None:
        check_claims(path, rules.content, terms.content, problems)
    return terms


def _check_names(
    path: str, rules: FacilityRules, document: Mapping[str, object], problems: list[Violation]
) -> None:
    """Checks that the document has the profile and the group of a facility.

    A mistake inside of them is reported where they are read.
    """
    for name, section in ((rules.profile, "profiles"), (rules.group, "groups")):
        defined = document.get(section, {})
        if name is not None and isinstance(defined, dict) and name not in defined:
            field = section.removesuffix("s")
            problems.append(Violation(f"{path}.{field}", f"{name} is not in {section}"))
    _check_cosigners(path, rules, document, problems)
    for key, key_rules in rules.keys.items():
        _check_cosigners(dotted(path, ("keys", key)), key_rules, document, problems)


def _check_cosigners(
    path: str, rules: Rules, document: Mapping[str, object], problems: list[Violation]
) -> None:
    """Checks that the document has the profiles whose facilities co-sign."""
    defined = document.get("profiles", {})
    if rules.cosigning is not None and isinstance(defined, dict):
        problems.extend(
            Violation(f"{path}.cosigning.profiles", f"{name} is not in profiles")
            for name in sorted((rules.cosigning.profiles or frozenset()) - defined.keys())
        )


def _facility(
    name: str, rules: FacilityRules, profile: Terms, problems: list[Violation]
) -> Facility:
    path = f"facilities.{name}"
    terms = narrow(replace(profile, facility=name, group=rules.group), path, rules, problems)
    check_use(path, rules, terms.formats, problems)
    if rules.content is not None:
        check_claims(path, rules.content, terms.content, problems)
    if terms.delegation and rules.group is None:
        text = f"is missing: {terms.rule('delegation')} lets the group's clients sign"
        problems.append(Violation(f"{path}.group", f"{text}; or state delegation: false"))
    keys: dict[str, Terms] = {}
    for key, key_rules in rules.keys.items():
        key_path = dotted(path, ("keys", key))
        _is_identifier(key_path, key, problems)
        if key_rules.quotas is not None:
            text = "are counted per facility: state them there"
            problems.append(Violation(f"{key_path}.quotas", text))
        keys[key] = narrow(terms, key_path, key_rules, problems)
        check_use(key_path, key_rules, keys[key].formats, problems)
        check_key(key_path, keys[key], problems)
        if key_rules.content is not None:
            check_claims(key_path, key_rules.content, keys[key].content, problems)
    others = of_unlisted_keys(terms)
    return Facility(profile=rules.profile, clients=rules.clients, terms=others, keys=keys)


def _groups(
    rules: Mapping[str, GroupRules], facilities: Mapping[str, Facility]
) -> dict[str, Group]:
    delegating: defaultdict[str | None, set[str]] = defaultdict(set)
    for name, facility in facilities.items():
        if facility.terms.delegation:
            delegating[facility.terms.group].add(name)
    return {
        name: Group(group.name, group.clients, frozenset(delegating[name]))
        for name, group in rules.items()
    }


def _inverted(clients_of: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    names: defaultdict[str, set[str]] = defaultdict(set)
    for name, clients in clients_of.items():
        for client in clients:
            names[client].add(name)
    return {client: frozenset(own) for client, own in names.items()}


def _staff(document: Mapping[str, object], problems: list[Violation]) -> dict[str, frozenset[Role]]:
    """Returns the roles of auditors and operators by principal. The registry names officers."""
    try:
        rules = StaffRules.model_validate(document.get("roles", {}))
    except ValidationError as error:
        problems.extend(problems_of(error, "roles"))
        return {}
    roles = _inverted({name: getattr(rules, name) for name in StaffRules.model_fields})
    return {who: frozenset(Role(name) for name in names) for who, names in roles.items()}


def _check_apart(
    staff: Mapping[str, frozenset[Role]],
    facilities: Mapping[str, Facility],
    groups: Mapping[str, Group],
    problems: list[Violation],
) -> None:
    """Checks that no auditor or operator is a client."""
    clients = [(f"facilities.{name}.clients", item.clients) for name, item in facilities.items()]
    clients += [(f"groups.{name}.clients", item.clients) for name, item in groups.items()]
    for path, principals in clients:
        for principal in sorted(principals & staff.keys()):
            role = min(staff[principal])
            text = f"{principal} has the role {role}; a client must have no role"
            problems.append(Violation(path, text))


def _denied(document: Mapping[str, object], problems: list[Violation]) -> frozenset[int]:
    try:
        return serials(document.get("denied_certificates", []))
    except ValueError as error:
        problems.append(Violation("denied_certificates", str(error)))
        return frozenset()
