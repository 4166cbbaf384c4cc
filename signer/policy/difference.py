"""What differs between two policies, for the officers who approve a new one."""

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet

from signer.model import Role
from signer.policy.narrow import in_words, shown
from signer.policy.rules import Group, Policy, Terms


def difference(before: Policy, after: Policy) -> list[str]:
    """Returns a line for each change: ``+`` added, ``-`` removed, ``~`` changed.

    The values in force are compared, not how they are written. A new facility has a line for
    each of its rules, and names the clients that may sign for it, those of its group included;
    for facilities with the same rules these are listed once.
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
    yield from (f"- group {name}" for name in sorted(old.keys() - new.keys()))
    for name in sorted(new):
        were = old.get(name, Group("", frozenset(), frozenset()))
        if name not in old:
            yield f"+ group {name}, named {new[name].name}"
        elif were.name != new[name].name:
            yield f"~ group {name}: name {were.name} becomes {new[name].name}"
        yield from _set(f"client of group {name}", were.clients, new[name].clients)


def _facilities(before: Policy, after: Policy) -> Iterator[str]:
    old, new = before.facilities, after.facilities
    yield from (f"- facility {name}" for name in sorted(old.keys() - new.keys()))
    yield from new_facilities(after, sorted(new.keys() - old.keys()))
    for name in sorted(old.keys() & new.keys()):
        yield from _facility(name, before, after)


def new_facilities(policy: Policy, names: Iterable[str]) -> Iterator[str]:
    """Yields all that the policy says of facilities, for officers who do not know them yet."""
    first: dict[str, str] = {}
    for name in names:
        facility = policy.facilities[name]
        group = f", group {facility.terms.group}" if facility.terms.group else ""
        clients = ", ".join(sorted(policy.clients_of(facility.terms))) or "no client"
        rules = [f": {rule} {in_words(value, 'none')}" for rule, value in _rules(facility.terms)]
        for key in sorted(facility.keys):
            own = _own_rules(facility.terms, facility.keys[key])
            rules.append(f", key {key}: {own or 'the same rules'}")
        same = first.setdefault("".join(rules), name)
        alike = "" if same == name else f", rules as facility {same}"
        yield f"+ facility {name}, profile {facility.profile}{group}, for {clients}{alike}"
        if same == name:
            yield from (f"+ facility {name}{rule}" for rule in rules)


def _rules(terms: Terms) -> Iterable[tuple[str, object]]:
    return shown(terms).items()


def _own_rules(facility: Terms, key: Terms) -> str:
    """Returns the rules of a key that are not those of its facility."""
    around = shown(facility)
    own = [(rule, value) for rule, value in _rules(key) if value != around[rule]]
    return "; ".join(f"{rule} {in_words(value, 'none')}" for rule, value in own)


def _facility(name: str, before: Policy, after: Policy) -> Iterator[str]:
    old, new = before.facilities[name], after.facilities[name]
    yield from _set(f"client of facility {name}", old.clients, new.clients)
    if (old.terms.group, old.terms.delegation) != (new.terms.group, new.terms.delegation):
        yield from _set(
            f"client of facility {name}, as its group's",
            before.clients_of(old.terms) - old.clients,
            after.clients_of(new.terms) - new.clients,
        )
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


def _set(what: str, old: AbstractSet[str], new: AbstractSet[str]) -> Iterator[str]:
    yield from (f"- {what} {name}" for name in sorted(old - new))
    yield from (f"+ {what} {name}" for name in sorted(new - old))
