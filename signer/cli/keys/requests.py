"""``signer keys`` requests and certificates: what a rotation and an authority exchange."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from signer.cli.completion import operation_ids
from signer.cli.connection import client_options, describe
from signer.cli.keys.rotating import key_of, list_option, read_list
from signer.cli.operations.arguments import certificates_in
from signer.cli.operations.flow import LONG, full_id, only_one
from signer.cli.operations.following import follow_options
from signer.cli.options import FILE, NEW_FOLDER, json_option
from signer.cli.output import new_folder, print_json, say, write_file
from signer.cli.progress import progress
from signer.client import KeyVersion, Operation, SignerClient, SignerClientError
from signer.distinguished_name import parse_name
from signer.errors import OperatorError
from signer.model import parse_key_or_version
from signer.officers.approval import Proposal, parse
from signer.text import count
from signer.x509 import is_authority

_ID = re.compile(r"[0-9a-fA-F-]{4,36}")  # an operation's, or its beginning


class _FileOrId(click.Path):
    """A file as a Path, or the beginning of a rotation's id as a text."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if _ID.fullmatch(str(value)) and not Path(value).exists():
            return str(value)
        return FILE.convert(value, param, ctx)


def _rotates(operation: Operation) -> bool:
    return operation.kind == "rotate"


@click.command(short_help="Writes the certification requests of a rotation.")
@click.argument("identity", metavar="[ROTATION_ID]", required=False, shell_complete=operation_ids)
@click.option(
    "--out",
    metavar="DIR",
    required=True,
    type=NEW_FOLDER,
    help="The folder for them; it is created if it does not exist.",
)
@list_option
@client_options
@json_option
def requests(
    *, client: SignerClient, identity: str | None, out: Path, list_file: Path | None, as_json: bool
) -> None:
    """Writes the certification requests of a rotation's new versions, one file each.

    Without ROTATION_ID it is the one rotation that waits for certificates. The files are
    named facility.key.vN.csr. Versions that have their certificate already are left out.
    With --list only those of the keys in FILE are written.

    \b
      signer keys requests --out requests --client officer-a.yaml
      for csr in requests/*.csr; do
        openssl x509 -req -in "$csr" -CA \\
        csca.pem -CAkey csca.key -days 730 -out "${csr%.csr}.pem"
      done
      signer keys certificates requests/*.pem --client officer-a.yaml
    """
    wanted = None if list_file is None else set(read_list(list_file))
    identity = full_id(client, identity) if identity else only_one(client, "WAITING", _rotates)
    operation = client.operations.get(identity)
    proposal = parse(operation.content)
    if proposal.kind != "rotate" or not proposal.details.get("issuers"):
        raise OperatorError(f"operation {identity} is not a rotation with certificates")
    if operation.state == "PROPOSED":
        raise OperatorError(
            f"operation {identity} has no requests yet: they are made once it is approved"
        )
    waiting = [
        version
        for version in client.list_key_versions()
        if may_wait(version, proposal) and (wanted is None or key_of(version.name) in wanted)
    ]
    written = []
    with new_folder(out), progress("requests") as advance:
        for done, version in enumerate(waiting, 1):
            request = client.get_key_version(version.name).certification_request
            if request and has_subject(request, version.name, str(proposal.details["subject"])):
                key, number = parse_key_or_version(version.name)
                file = out / f"{key.facility}.{key.key}.v{number}.csr"
                write_file(file, request.encode())
                written.append({"key_version": version.name, "file": str(file)})
            advance(done, len(waiting))
    if as_json:
        print_json(written)
    else:
        say(f"{count(len(written), 'request is', 'requests are')} in {out}")
    if len(written) > proposal.details["keys"]:
        raise OperatorError(
            f"the rotation has {count(proposal.details['keys'], 'key')}, but {len(written)}"
            " requests match it: name its keys with --list FILE"
        )


def may_wait(version: KeyVersion, proposal: Proposal) -> bool:
    """Whether a version may be a new one of this rotation, still without a certificate."""
    return (
        version.state == "PRE_ACTIVE"
        and version.certificate is None
        and version.created is not None
        and version.created.timestamp() >= proposal.proposed_at
    )


def has_subject(request: str, version: str, template: str) -> bool:
    """Whether a request has the subject that a rotation's template gives for its version."""
    key, number = parse_key_or_version(version)
    subject = template
    for name, value in (("facility", key.facility), ("key", key.key), ("version", number)):
        subject = subject.replace(f"{{{name}}}", str(value))
    actual = x509.load_pem_x509_csr(request.encode()).subject
    return actual == parse_name(subject)


@click.command(short_help="Gives a rotation its certificates.")
@click.argument("files", metavar="[ROTATION_ID] FILE...", nargs=-1, required=True, type=_FileOrId())
@client_options
@follow_options
def certificates(*, client: SignerClient, files: tuple[Path | str, ...]) -> Operation:
    """Gives a rotation its certificates, in any order and number; PEM (with several) or DER.

    Without ROTATION_ID it is the one rotation that waits for them. Each must be for one of
    its new keys and issued by the authority that the officers approved.
    Certificates of authorities themselves are left out.

    \b
      signer keys certificates ID requests/*.pem --wait --client officer-a.yaml
    """
    ids = [given for given in files if isinstance(given, str)]
    if len(ids) > 1:
        raise click.UsageError("name only one rotation")
    paths = [given for given in files if isinstance(given, Path)]
    if not paths:
        raise click.UsageError("name the files of the certificates")
    files_of: dict[bytes, Path] = {}
    for file in paths:
        for one in certificates_in(file):
            if not is_authority(one):
                files_of.setdefault(one.public_bytes(Encoding.DER), file)
    if not files_of:
        raise OperatorError("the files contain only certificates of authorities")
    identity = full_id(client, ids[0]) if ids else only_one(client, "WAITING", _rotates)
    taken = 0
    with progress("certificates") as advance:

        def accepted(done: int) -> None:
            nonlocal taken
            taken = done
            advance(done, len(files_of))

        try:
            return client.operations.import_certificates(
                identity, list(files_of), accepted, timeout=LONG
            )
        except SignerClientError as error:
            raise OperatorError(
                in_files(describe(error), list(files_of.values())[taken:])
            ) from None


def in_files(text: str, files: Sequence[Path]) -> str:
    """Returns a text that numbers the certificates of a call, with their files instead."""
    return re.sub(r"certificates\[(\d+)\]", lambda found: str(files[int(found[1])]), text)
