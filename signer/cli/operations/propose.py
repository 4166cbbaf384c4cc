"""``signer operations propose``: one command a kind of operation."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from signer.algorithms import Algorithm
from signer.cli.groups import CommandGroup
from signer.cli.operations.arguments import (
    KEY,
    TIME,
    VERSION,
    certificate_in,
    certificates_in,
    principal_of,
    read_file,
)
from signer.cli.operations.flow import proposal_options
from signer.cli.operations.requested import (
    OperationRequest,
    officers_request,
    request,
    request_with_certificates,
)
from signer.cli.options import FILE, PATHS, token_option
from signer.client import SignerClient
from signer.config.policy_files import policy_text, read_files
from signer.errors import OperatorError

_subject_option = click.option(
    "--subject",
    metavar="DN",
    default="",
    help='Create a certification request too, for a subject like "CN=DCC 1,O=Ministry,C=VN".',
)
_at_option = click.option(
    "--at",
    type=TIME,
    default=0,
    help="2030-01-01T08:00:00+07:00, or +7d or +6months; without: when it is approved.",
)
_key_argument = click.argument("key", metavar="NAME", type=KEY)
_placed_option = click.option("--token", metavar="LABEL", required=True, help="The other token.")
_version_argument = click.argument("version", metavar="VERSION", type=VERSION)


@click.group(
    cls=CommandGroup,
    short_help="Proposes an operation, signed by you, for another officer.",
    elsewhere={
        "compromise": "`signer keys compromise`, which one officer does at once",
        "rotate": "`signer keys rotate`",
        "suspend": "`signer keys suspend`, which one officer does at once",
    },
)
def propose() -> None:
    """Proposes an operation, signed by you; another officer approves it.

    What it would change is shown first, and you are asked to confirm. The bytes that you
    sign are checked to be what you asked for. With --draft they are only written to a file,
    for a key on a smart card; `signer operations submit` proposes them then.

    \b
      signer operations propose create-key facilities/moh/keys/dcc \\
        --algorithm ES256 \\
        --subject "CN=DCC 1,O=Ministry of Health,C=VN" --client officer-a.yaml
      signer operations propose activate facilities/moh/keys/dcc/versions/1 \\
        --sign-until +180d --client officer-a.yaml
    """


def _add(kind: str, text: str, *parameters: Callable[[Any], Any]) -> None:
    """Adds the command of a kind whose arguments are exactly its ``parameters``."""

    def command(**arguments: Any) -> OperationRequest:
        return request(kind, arguments)

    decorated: Any = proposal_options(command)
    for parameter in reversed(parameters):
        decorated = parameter(decorated)
    propose.command(kind, help=text)(decorated)


_add(
    "create-key",
    """Creates the key NAME with its first version.

    \b
      signer operations propose create-key facilities/01-001/keys/records \\
        --algorithm ES256 --activate --client officer-a.yaml
      signer operations propose create-key facilities/moh/keys/dcc \\
        --algorithm PS256 \\
        --bits 3072 --subject "CN=DCC 1,C=VN" --client officer-a.yaml
    """,
    _key_argument,
    click.option(
        "--algorithm",
        required=True,
        type=click.Choice([str(a) for a in Algorithm], case_sensitive=False),
        help="Fixed for the life of the key.",
    ),
    click.option("--bits", type=int, default=0, help="RSA only: 2048, 3072 or 4096."),
    token_option,
    click.option("--activate", is_flag=True, help="It signs as soon as it is created."),
    click.option(
        "--sign-until",
        type=TIME,
        default=0,
        help="With --activate: how long it may sign; +180d is from now.",
    ),
    _subject_option,
)
_add(
    "create-wrapping-key",
    """Creates a key that wraps private keys.

    It never leaves its token. From then on it wraps the new keys of profiles with
    `storage: wrapped`.

    \b
      signer operations propose create-wrapping-key --token hsm-1 \\
        --client officer-a.yaml
    """,
    token_option,
)
_add(
    "place-wrapping-key",
    """Lets another token unwrap what a wrapping key wraps.

    The token --token can then sign with the keys that the wrapping key ID has wrapped.
    First copy the wrapping key by the HSM's own means, under the same CKA_ID. The token must
    unwrap a key and sign once, and that key's public key in the registry must verify it.

    \b
      signer operations propose place-wrapping-key ID --token hsm-2 \\
        --client officer-a.yaml
    """,
    click.argument("wrapping_key", metavar="ID"),
    _placed_option,
)
_add(
    "rewrap",
    """Moves wrapped keys from one wrapping key to another.

    FROM and --to are ids of wrapping keys. Public keys do not change. Afterwards FROM can be
    destroyed by destroy-wrapping-key.

    \b
      signer operations propose rewrap ID --client officer-a.yaml
    """,
    click.argument("from_key", metavar="FROM"),
    click.option(
        "--to",
        "to_key",
        metavar="ID",
        default="",
        help="The wrapping key to move to; without: the newest.",
    ),
    token_option,
)
_add(
    "destroy-wrapping-key",
    """Destroys a wrapping key that no longer wraps a key.

    ID is its id, as `signer keys wrapping-keys` lists it.

    \b
      signer operations propose destroy-wrapping-key ID --client officer-a.yaml
    """,
    click.argument("wrapping_key", metavar="ID"),
)
_add(
    "new-version",
    """Creates the next version of the key NAME. It signs nothing until it is activated.

    \b
      signer operations propose new-version facilities/moh/keys/dcc \\
        --subject "CN=DCC 2,C=VN" --client officer-a.yaml
    """,
    _key_argument,
    token_option,
    _subject_option,
)
_add(
    "activate",
    """Lets VERSION sign as its key's primary version.

    \b
      signer operations propose activate facilities/moh/keys/dcc/versions/2 \\
        --at 2030-01-01T00:00:00+07:00 --sign-until 2030-07-01T00:00:00+07:00 \\
        --client a.yaml
    """,
    _version_argument,
    _at_option,
    click.option(
        "--sign-until", type=TIME, default=0, help="How long it may sign, as --at; without: no end."
    ),
)
_add(
    "resume",
    """Lets a suspended TARGET sign again.

    TARGET is a key, a version, a facility, a group or everything.

    \b
      signer operations propose resume facilities/01-001/keys/records \\
        --client officer-a.yaml
      signer operations propose resume facilities/01-001 --client officer-a.yaml
      signer operations propose resume groups/01 --client officer-a.yaml
      signer operations propose resume everything --client officer-a.yaml
    """,
    click.argument("target", metavar="TARGET"),
)
_add(
    "clock",
    """Confirms the appliance's clock, which is in doubt.

    The clock has jumped, or differs from the log; nothing is signed until it is right or
    confirmed.
    Look at the clock yourself before you sign: you confirm the time that the appliance shows.
    If records of the audit log have a wrong time, name the first one; the times of all after
    it are wrong as well. `signer audit show` lists them.

    \b
      signer operations propose clock --client officer-a.yaml
      signer operations propose clock --wrong-from 8121 --client officer-a.yaml
    """,
    click.option(
        "--wrong-from",
        type=click.IntRange(min=0),
        default=0,
        metavar="RECORD",
        help="The first record whose time is wrong; without: no time is wrong.",
    ),
)
_add(
    "deactivate",
    """Ends VERSION for good; its signatures stay valid.

    \b
      signer operations propose deactivate facilities/moh/keys/dcc/versions/1 \\
        --at +7d --client officer-a.yaml
    """,
    _version_argument,
    _at_option,
)
_add(
    "schedule-destruction",
    """Allows VERSION to be destroyed from a time on.

    Until then `restore` cancels it.

    \b
      signer operations propose schedule-destruction \\
        facilities/moh/keys/dcc/versions/1 \\
        --at +30d --client officer-a.yaml
    """,
    _version_argument,
    click.option("--at", type=TIME, required=True, help="Not before: a time, or +30d from now."),
)
_add(
    "destroy",
    """Destroys the private key of VERSION on its token. This cannot be undone.

    Its destruction must have been scheduled for a time that has passed.

    \b
      signer operations propose destroy facilities/moh/keys/dcc/versions/1 \\
        --client officer-a.yaml
    """,
    _version_argument,
)
_add(
    "restore",
    """Cancels the scheduled destruction of VERSION.

    \b
      signer operations propose restore facilities/moh/keys/dcc/versions/1 \\
        --client officer-a.yaml
    """,
    _version_argument,
)


_add(
    "add-placement",
    """Lets the token --token sign with VERSION, too.

    First copy the private key to it by the HSM's own means, under the same CKA_ID or another.
    The token must sign once, and the public key in the registry must verify it.

    \b
      signer operations propose add-placement facilities/moh/keys/dcc/versions/1 \\
        --token hsm-2 --client officer-a.yaml
    """,
    _version_argument,
    _placed_option,
    click.option(
        "--cka-id",
        metavar="HEX",
        default="",
        callback=lambda _context, _option, value: value.lower(),
        help="The CKA_ID on that token; without: the same.",
    ),
)
_add(
    "remove-placement",
    """Ends signing with VERSION on the token --token.

    Other tokens that hold the key still sign with it.

    \b
      signer operations propose remove-placement \\
        facilities/moh/keys/dcc/versions/1 \\
        --token hsm-2 --client officer-a.yaml
    """,
    _version_argument,
    _placed_option,
)


@propose.command("import-certificate")
@_version_argument
@click.argument("file", metavar="FILE", type=FILE)
@click.option(
    "--issuer",
    "issuers",
    type=FILE,
    multiple=True,
    required=True,
    help="The issuer's certificate, then that of its issuer: in order, in one file or several.",
)
@click.option("--replace", is_flag=True, help="Allow FILE to replace another certificate.")
@proposal_options
def import_certificate(
    *, version: str, file: Path, issuers: tuple[Path, ...], replace: bool
) -> OperationRequest:
    """Gives VERSION the certificate in FILE (PEM or DER).

    \b
      signer operations propose import-certificate \\
        facilities/moh/keys/dcc/versions/1 dcc.pem \\
        --issuer csca.pem --client officer-a.yaml
    """
    return request_with_certificates(
        "import-certificate",
        {"version": version, "replace": replace},
        certificate=certificate_in(file),
        issuers=[certificate for issuer in issuers for certificate in certificates_in(issuer)],
    )


@propose.command("policy", short_help="Puts another policy in force.")
@click.argument("files", metavar="[FILES]...", type=PATHS, nargs=-1)
@click.option("--sha256", metavar="HEX", default="", help="Only if it is the policy of this hash.")
@proposal_options
def propose_policy(*, files: tuple[Path, ...], sha256: str) -> OperationRequest:
    """Puts the policy in FILES in force: one folder, or files. They are sent with the proposal.

    The difference to the policy in force is shown. Without FILES it is the policy in the
    appliance's own files; `signer check` there prints its hash, and with --sha256 no other
    policy is proposed.

    \b
      signer policy export --in-force policy --client officer-a.yaml
      signer policy propose policy --client officer-a.yaml
    """
    wanted = sha256.lower()
    if not files:
        return request("policy", {"policy_sha256": wanted})
    text = policy_text(read_files(*files))
    found = hashlib.sha256(text).hexdigest()
    if wanted not in ("", found):
        raise OperatorError(f"the files are the policy {found}, not {wanted}")
    return request("policy", {"policy_sha256": found}, text)


@propose.command(short_help="Enrols the facilities of a CSV, with a key each.")
@click.argument("csv", metavar="CSV", type=FILE)
@token_option
@proposal_options
def enrol(*, csv: Path, token: str) -> OperationRequest:
    """Enrols the facilities of a CSV, with a key each, in one operation.

    \b
    Its first line is: facility,group,profile,clients,key,algorithm,bits
    `clients` are URIs with spaces between them; `group` and `bits` may be empty:
      01-003,01,clinic,spiffe://signer.example/province/01,records,ES256,
    The columns `quotas` and `hours` may be added, which narrow the profile:
      100 per minute; 5000 per day      mon-fri 07:00-17:30 Asia/Ho_Chi_Minh

    \b
      signer operations propose enrol facilities.csv --client officer-a.yaml
    """
    content = read_file(csv)
    wanted = request(
        "enrol", {"token": token}, content, csv_sha256=hashlib.sha256(content).hexdigest()
    )
    return wanted._replace(source=str(csv))


@propose.command(short_help="Adds or removes officers, or replaces a certificate.")
@click.option("--add", "added", type=FILE, multiple=True, help="Certificate of an officer.")
@click.option("--remove", "removed", metavar="PRINCIPAL", multiple=True, help="As in spiffe://...")
@proposal_options
def officers(
    *, added: tuple[Path, ...], removed: tuple[str, ...]
) -> Callable[[SignerClient], OperationRequest]:
    """Adds or removes officers; an added certificate may replace an officer's older one.

    \b
      signer operations propose officers --add officer-c.pem \\
        --remove spiffe://signer.example/officer/a --client officer-a.yaml
    """
    if not added and not removed:
        raise click.UsageError("nothing would change: give --add FILE or --remove PRINCIPAL")
    certificates = {principal_of(found): found for found in map(certificate_in, added)}

    def build(client: SignerClient) -> OperationRequest:
        in_force = client.operations.officers().officers
        return officers_request(dict(in_force), certificates, removed)

    return build
