"""``signer keys`` plan and rotate: versions that end soon, and new versions of their keys."""

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import click
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from signer.algorithms import Algorithm
from signer.cli.connection import client_options
from signer.cli.operations.arguments import DURATION, KEY, TIME, certificates_in, read_file, utc
from signer.cli.operations.flow import proposal_options
from signer.cli.operations.requested import OperationRequest, request_with_certificates
from signer.cli.options import FILE, json_option, token_option
from signer.cli.output import print_json, print_table, say
from signer.client import KeyVersion, SignerClient
from signer.errors import OperatorError
from signer.model import KeyName
from signer.officers.rotation_plan import Step, plan_text
from signer.policy.lifetime import NEARLY
from signer.text import count

_WORKING = frozenset({"ACTIVE", "SUSPENDED", "PRE_ACTIVE"})


class Due(NamedTuple):
    """A version that ends at ``ends`` because of ``cause``; None: when it has signed enough.

    ``successor`` is the version of its key that signs after that, or None; ``prepared``
    one that was made but has no planned activation, or None. ``rotatable``: no version of
    the key is suspended or not active yet, which a rotation refuses.
    """

    version: str
    ends: datetime | None
    cause: str
    successor: str | None
    prepared: str | None
    rotatable: bool


def key_of(version: str) -> str:
    """Returns the name of a version's key."""
    return version.partition("/versions/")[0]


def due(versions: Iterable[KeyVersion], now: datetime, days: int) -> list[Due]:
    """Returns the versions in use that end within ``days`` days, or have ended; soonest first.

    With them those that have little left of the signatures of their lifetime. In use are those
    that sign, are suspended, or have a planned activation. ``versions`` must be in the order of
    their keys, as the appliance lists them.
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
            elif nearly_used(version):
                followers = _followers(version, latest, siblings)
                found.append(Due(version.name, None, "lifetime_signatures", *followers, rotatable))
    return sorted(found, key=lambda version: (version.ends or now, version.version))


def nearly_used(version: KeyVersion) -> bool:
    """Whether a version has little left of the signatures that it may ever make."""
    limit = version.lifetime_signatures
    return limit > 0 and version.signatures_used >= NEARLY * limit


def end_of(version: KeyVersion) -> tuple[datetime | None, str]:
    """Returns when a version ends and the cause, or None and "" if it has no end."""
    ends = [(version.sign_until, "sign_until"), (version.deactivate_at, "deactivate_at")]
    if version.certificate is not None:
        certificate = x509.load_der_x509_certificate(version.certificate)
        ends.append((certificate.not_valid_after_utc, "certificate"))
    return min(
        ((moment, cause) for moment, cause in ends if moment is not None), default=(None, "")
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
    return sorted({key_of(one.version) for one in found if one.successor is None and one.rotatable})


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
    certificate ends: the earliest counts. A version that has made 80 % of the signatures that
    the policy allows it (lifetime_signatures) is listed too, without a time.

    \b
      signer keys plan --days 60 --client officer-a.yaml
      signer keys plan --days 60 --names --client officer-a.yaml > due
      signer keys rotate --list due --activate-at +14d --overlap 7d \\
        --client officer-a.yaml
    """
    if names and as_json:
        raise click.UsageError("give --names or --json, not both")
    found = due(client.list_key_versions(), datetime.now(UTC), days)
    if names:
        say("".join(f"{name}\n" for name in names_due(found)), newline=False)
    elif as_json:
        print_json([{**one._asdict(), "ends": one.ends and one.ends.isoformat()} for one in found])
    elif found:
        print_table(
            ("version", "ends", "because of", "successor"),
            ((one.version, utc(one.ends), one.cause, _successor(one)) for one in found),
        )
    else:
        say(f"nothing ends in the next {count(days, 'day')}")


def _successor(found: Due) -> str:
    none = f"none: {found.prepared} has no planned activation" if found.prepared else "none"
    return found.successor or none


list_option = click.option(
    "--list",
    "list_file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="Keys, one a line; - is standard input.",
)


@click.command(short_help="Proposes new versions of keys, for one or thousands.")
@click.argument("names", metavar="[NAME]...", nargs=-1, type=KEY)
@click.option(
    "--due",
    "days",
    metavar="DAYS",
    type=click.IntRange(0, 36_500),
    help="Also all keys that `signer keys plan --days DAYS --names` prints.",
)
@list_option
@click.option(
    "--activate-at",
    type=TIME,
    required=True,
    help="When the new versions take over: 2030-01-01T08:00:00+07:00, or +14d from now.",
)
@click.option(
    "--overlap",
    "overlap_seconds",
    type=DURATION,
    required=True,
    help="How long the old ones still sign where a call names them, as in 7d.",
)
@click.option(
    "--sign-for", "sign_for_seconds", type=DURATION, default=0, help="As in 365d; without: no end."
)
@click.option(
    "--destroy-after",
    "destroy_after_seconds",
    type=DURATION,
    default=0,
    help="Schedule the destruction of the old ones this long after they end.",
)
@click.option(
    "--subject",
    metavar="TEMPLATE",
    default="",
    help='For certificates, as in "CN={facility} {key} {version},C=VN".',
)
@click.option(
    "--issuer",
    "issuers",
    type=FILE,
    multiple=True,
    help="The certificate of the authority, then that of its issuer.",
)
@token_option
@proposal_options
def rotate(
    *,
    names: tuple[str, ...],
    days: int | None,
    list_file: Path | None,
    issuers: tuple[Path, ...],
    **arguments: Any,
) -> Callable[[SignerClient], OperationRequest]:
    """Proposes to replace the versions that sign, for one key or for thousands at once.

    One approval covers everything: new versions are created, take over at the given time, and
    the old ones end after the overlap. With --subject and --issuer each new version first
    waits for a certificate: see `signer keys requests` and `signer keys certificates`.

    \b
      signer keys rotate facilities/moh/keys/dcc --activate-at +14d \\
        --overlap 7d \\
        --sign-for 180d --subject "CN=DCC {version},O=Ministry of Health,C=VN" \\
        --issuer csca.pem --client officer-a.yaml
      signer keys rotate --due 60 --activate-at +14d --overlap 7d \\
        --destroy-after 30d \\
        --client officer-a.yaml
    """
    if bool(arguments["subject"]) != bool(issuers):
        raise click.UsageError("certificates need both --subject and --issuer")
    if not names and days is None and list_file is None:
        raise click.UsageError("name the keys to rotate, or give --due DAYS or --list FILE")
    authority = [certificate for file in issuers for certificate in certificates_in(file)]
    named = {*names, *(() if list_file is None else read_list(list_file))}

    def build(client: SignerClient) -> OperationRequest:
        ending = set[str]()
        if days is not None:
            ending = set(names_due(due(client.list_key_versions(), datetime.now(UTC), days)))
        keys = sorted(named | ending)
        if not keys:
            raise OperatorError(f"nothing to rotate in the next {count(days or 0, 'day')}")
        return rotation(arguments, authority, keys, _versions(client, keys))

    return build


def rotation(
    arguments: dict[str, Any],
    issuers: Sequence[x509.Certificate],
    keys: Sequence[str],
    versions: Iterable[KeyVersion],
) -> OperationRequest:
    """Requests a rotation of ``keys``, sorted; ``versions`` are all versions of these keys.

    Officers sign the hash of the plan, which must be that of these keys.
    """
    wanted = request_with_certificates(
        "rotate", arguments, "".join(f"{key}\n" for key in keys).encode(), issuers=list(issuers)
    )
    plan = {"plan_sha256": plan_sha256(keys, versions), "keys": len(keys)}
    return wanted._replace(expected={**wanted.expected, **plan})


def plan_sha256(keys: Sequence[str], versions: Iterable[KeyVersion]) -> str:
    """Returns the hash of the plan that rotates ``keys``; "" if one of them has no primary."""
    steps: dict[str, Step] = {}
    for key, group in groupby(versions, key=lambda version: key_of(version.name)):
        siblings = list(group)
        primary = next((_number(version.name) for version in siblings if version.primary), None)
        newest = siblings[-1]
        public = load_der_public_key(newest.public_key)
        bits = public.key_size if isinstance(public, rsa.RSAPublicKey) else 0
        if primary is not None:
            new = _number(newest.name) + 1
            steps[key] = Step(KeyName.parse(key), primary, new, Algorithm(newest.algorithm), bits)
    if not all(key in steps for key in keys):
        return ""
    return hashlib.sha256(plan_text([steps[key] for key in keys])).hexdigest()


def _number(version: str) -> int:
    return int(version.rpartition("/")[2])


def _versions(client: SignerClient, keys: Sequence[str]) -> Iterator[KeyVersion]:
    # Up to 50 keys are read one by one; for more, all versions are listed.
    for key in [""] if len(keys) > 50 else keys:
        yield from client.list_key_versions(key)


def read_list(file: Path) -> list[str]:
    """Reads keys, one a line; raises OperatorError, which names the first wrong line."""
    data = sys.stdin.buffer.read() if str(file) == "-" else read_file(file)
    keys = []
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        if line.strip():
            try:
                keys.append(str(KeyName.parse(line.strip())))
            except ValueError as error:
                raise OperatorError(f"{file}, line {number}: {error}") from None
    return keys
