"""What falls due: versions that end soon, and whether another one takes over."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from signer.cli.connection import connect, daemon_options
from signer.cli.operations.arguments import utc
from signer.cli.options import json_option
from signer.cli.tables import print_table

if TYPE_CHECKING:
    from signer.client import KeyVersion

_WORKING = frozenset({"ACTIVE", "SUSPENDED", "PRE_ACTIVE"})


class Due(NamedTuple):
    """A version that ends at ``ends`` because of ``cause``.

    ``successor`` is the version of its key that goes on signing then, or None;
    ``prepared`` one that was made to, but was not told when, or None. ``rotatable``:
    no version of the key is suspended or still to begin, which a rotation refuses.
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

    In use are those that sign, are suspended, or are told when to sign. ``versions``
    come in the order of their keys, as the appliance lists them.
    """
    latest = now + timedelta(days=days)
    found = []
    for _, group in groupby(versions, key=lambda each: key_of(each.name)):
        siblings = [each for each in group if each.state in _WORKING]
        rotatable = all(each.state == "ACTIVE" for each in siblings)
        for version in siblings:
            if version.state == "PRE_ACTIVE" and version.activate_at is None:
                continue
            ends, cause = end_of(version)
            if ends is not None and ends <= latest:
                successor, prepared = _followers(version, ends, siblings)
                found.append(Due(version.name, ends, cause, successor, prepared, rotatable))
    return sorted(found, key=lambda each: (each.ends, each.version))


def end_of(version: KeyVersion) -> tuple[datetime | None, str]:
    """Returns when a version ends, and which of its times says so; None: no time does."""
    from cryptography import x509

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
    """Returns the version that signs when another ends, and one that only waits to be told."""
    successor = prepared = None
    for each in siblings:
        theirs = end_of(each)[0]
        if each is version or each.state == "SUSPENDED" or (theirs is not None and theirs <= ends):
            continue
        if each.activate_at is None:
            prepared = each.name
        elif each.activate_at <= ends:
            successor = each.name
    return successor, prepared


def names_due(found: Iterable[Due]) -> list[str]:
    """Returns the keys that a rotation is for: nothing has been done about them yet."""
    return sorted({each.key for each in found if each.successor is None and each.rotatable})


@click.command()
@click.option(
    "--days",
    metavar="N",
    type=click.IntRange(0, 36_500),
    default=30,
    show_default=True,
    help="How far to look ahead.",
)
@click.option("--names", is_flag=True, help="Print only the keys to rotate, one a line.")
@daemon_options
@json_option
def plan(*, client_file: Path, days: int, names: bool, as_json: bool) -> None:
    """Shows which versions end in the next days, and whether another one takes over.

    A version ends when it may no longer sign, when it is deactivated, or when its
    certificate ends: the earliest counts.

    \b
      signer keys plan --days 60 --client officer-a.yaml
      signer keys plan --days 60 --names --client officer-a.yaml > due
      signer keys rotate --list due --activate-at +14d --overlap 7d --client officer-a.yaml
    """
    if names and as_json:
        raise click.UsageError("--names and --json: say one of them")
    with connect(client_file) as client:
        found = due(client.list_key_versions(), datetime.now(UTC), days)
    if names:
        for name in names_due(found):
            click.echo(name)
    elif as_json:
        said = [{**each._asdict(), "ends": each.ends.isoformat()} for each in found]
        click.echo(json.dumps(said, indent=2))
    elif found:
        print_table(
            ("version", "ends", "because of", "successor"),
            ((each.version, utc(each.ends), each.cause, _successor(each)) for each in found),
        )
    else:
        click.echo(f"nothing ends in the next {days} days")


def _successor(found: Due) -> str:
    if found.successor is not None:
        return found.successor
    if found.prepared is not None:
        return f"none: {found.prepared} is not told when to sign"
    return "none"
