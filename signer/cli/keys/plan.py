"""``signer keys plan``: versions that end soon, and whether another one takes over."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import NamedTuple

import click
from cryptography import x509

from signer.cli.connection import client_options
from signer.cli.operations.arguments import utc
from signer.cli.options import json_option
from signer.cli.output import print_json, print_table
from signer.client import KeyVersion, SignerClient
from signer.text import count

_WORKING = frozenset({"ACTIVE", "SUSPENDED", "PRE_ACTIVE"})


class Due(NamedTuple):
    """A version that ends at ``ends`` because of ``cause``.

    ``successor`` is the version of its key that signs after that, or None; ``prepared``
    one that was made but has no planned activation, or None. ``rotatable``: no version of
    the key is suspended or not active yet, which a rotation refuses.
    """

    version: str
    ends: datetime
    cause: str
    successor: str | None
    prepared: str | None
    rotatable: bool

    @property
    def key(self) -> str:
        return key_of(self.version)


def key_of(version: str) -> str:
    """Returns the name of a version's key."""
    return version.partition("/versions/")[0]


def due(versions: Iterable[KeyVersion], now: datetime, days: int) -> list[Due]:
    """Returns the versions in use that end within ``days`` days, or have ended; soonest first.

    In use are those that sign, are suspended, or have a planned activation. ``versions``
    must be in the order of their keys, as the appliance lists them.
    """
    latest = now + timedelta(days=days)
    found = []
    for _, group in groupby(versions, key=lambda version: key_of(version.name)):
        siblings = [version for version in group if version.state in _WORKING]
        rotatable = all(version.state == "ACTIVE" for version in siblings)
        for version in siblings:
            if version.state == "PRE_ACTIVE" and version.activate_at is None:
                continue
            ends, cause = end_of(version)
            if ends is not None and ends <= latest:
                successor, prepared = _followers(version, ends, siblings)
                found.append(Due(version.name, ends, cause, successor, prepared, rotatable))
    return sorted(found, key=lambda version: (version.ends, version.version))


def end_of(version: KeyVersion) -> tuple[datetime | None, str]:
    """Returns when a version ends and the cause, or None and "" if it has no end."""
    ends = [(version.sign_until, "sign_until"), (version.deactivate_at, "deactivate_at")]
    if version.certificate is not None:
        certificate = x509.load_der_x509_certificate(version.certificate)
        ends.append((certificate.not_valid_after_utc, "certificate"))
    return min(
        ((moment, cause) for moment, cause in ends if moment is not None),
        default=(None, ""),
    )


def _followers(
    version: KeyVersion, ends: datetime, siblings: Sequence[KeyVersion]
) -> tuple[str | None, str | None]:
    """Returns the version that signs when another ends, and one without planned activation."""
    successor = prepared = None
    for other in siblings:
        end = end_of(other)[0]
        if other is version or other.state == "SUSPENDED" or (end is not None and end <= ends):
            continue
        if other.activate_at is None:
            prepared = other.name
        elif other.activate_at <= ends:
            successor = other.name
    return successor, prepared


def names_due(found: Iterable[Due]) -> list[str]:
    """Returns the keys to rotate: those that have no successor and can be rotated."""
    return sorted({one.key for one in found if one.successor is None and one.rotatable})


@click.command(short_help="Shows which versions end soon, and their successors.")
@click.option(
    "--days",
    metavar="N",
    type=click.IntRange(0, 36_500),
    default=30,
    show_default=True,
    help="How far to look ahead.",
)
@click.option("--names", is_flag=True, help="Print only the keys to rotate, one a line.")
@client_options
@json_option
def plan(*, client: SignerClient, days: int, names: bool, as_json: bool) -> None:
    """Shows which versions end in the next days, and whether another one takes over.

    A version ends when it may no longer sign, when it is deactivated, or when its
    certificate ends: the earliest counts.

    \b
      signer keys plan --days 60 --client officer-a.yaml
      signer keys plan --days 60 --names --client officer-a.yaml > due
      signer keys rotate --list due --activate-at +14d --overlap 7d --client officer-a.yaml
    """
    if names and as_json:
        raise click.UsageError("give --names or --json, not both")
    found = due(client.list_key_versions(), datetime.now(UTC), days)
    if names:
        for name in names_due(found):
            click.echo(name)
    elif as_json:
        print_json([{**one._asdict(), "ends": one.ends.isoformat()} for one in found])
    elif found:
        print_table(
            ("version", "ends", "because of", "successor"),
            ((one.version, utc(one.ends), one.cause, _successor(one)) for one in found),
        )
    else:
        click.echo(f"nothing ends in the next {count(days, 'day')}")


def _successor(found: Due) -> str:
    if found.successor is not None:
        return found.successor
    if found.prepared is not None:
        return f"none: {found.prepared} has no planned activation"
    return "none"
