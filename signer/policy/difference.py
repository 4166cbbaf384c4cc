"""What differs between two policies, for the officers who approve a new one."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet

from signer.model import Role
from signer.policy.narrow import in_words, shown
from signer.policy.rules import Facility, Policy, Terms


def difference(before: Policy, after: Policy) -> list[str]:
    """Returns a line for each change: ``+`` added, ``-`` removed, ``~`` changed.

    The values in force are compared, not how they are written.
    """
    return [
        *_roles(before, after),
        *_set(
            "denied certificate",
            {f"{number:x}" for number in before.denied_certificates},
            {f"{number:x}" for number in after.denied_certificates},
        ),
        *_groups(before, after),
        *_facilities(before, after),
    ]


def _roles(before: Policy, after: Policy) -> Iterator[str]:
    for role in Role:
        if role is not Role.ISSUER:  # listed with facilities and groups
            old, new = (
                {who for who, roles in policy.roles.items() if role in roles}
                for policy in (before, after)
            )
            yield from _set(str(role), old, new)


def _groups(before: Policy, after: Policy) -> Iterator[str]:
    old, new = before.groups, after.groups
    yield from _set("group", set(old), set(new))
    for name in sorted(new):
        were = old[name].clients if name in old else frozenset[str]()
        yield from _set(f"client of group {name}", were, new[name].clients)


def _facilities(before: Policy, after: Policy) -> Iterator[str]:
    old, new = before.facilities, after.facilities
    yield from (f"- facility {name}" for name in sorted(old.keys() - new.keys()))
    for name in sorted(new.keys() - old.keys()):
        facility = new[name]
        clients = ", ".join(sorted(facility.clients)) or "no client"
        group = f", group {facility.terms.group}" if facility.terms.group else ""
        yield f"+ facility {name}, profile {facility.profile}{group}, for {clients}"
        yield f"+ facility {name}: {_terms(facility.terms)}"
        for key in sorted(facility.keys):
            yield f"+ key {name}/{key}: {_terms(facility.keys[key])}"
    for name in sorted(old.keys() & new.keys()):
        if old[name] != new[name]:
            yield from _facility(name, old[name], new[name])


def _facility(name: str, old: Facility, new: Facility) -> Iterator[str]:
    yield from _set(f"client of facility {name}", old.clients, new.clients)
    yield from _changed(f"facility {name}", old.terms, new.terms)
    for key in sorted(old.keys.keys() | new.keys.keys()):
        yield from _changed(f"key {name}/{key}", old.terms_of(key), new.terms_of(key))


def _changed(what: str, old: Terms, new: Terms) -> Iterator[str]:
    if old.group != new.group:
        yield f"~ {what}: group {old.group or 'none'} becomes {new.group or 'none'}"
    were, are = shown(old), shown(new)
    for name, value in are.items():
        if (was := were[name]) != value:
            yield f"~ {what}: {name} {in_words(was, 'none')} becomes {in_words(value, 'none')}"


def _terms(terms: Terms) -> str:
    rules = shown(terms)
    return ", ".join(
        f"{name} {in_words(rules[name], 'none')}" for name in ("formats", "algorithms")
    )


def _set(what: str, old: AbstractSet[str], new: AbstractSet[str]) -> Iterator[str]:
    yield from (f"- {what} {name}" for name in sorted(old - new))
    yield from (f"+ {what} {name}" for name in sorted(new - old))
