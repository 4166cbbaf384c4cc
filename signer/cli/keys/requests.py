"""``signer keys`` requests and certificates: what a rotation and an authority exchange."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from signer.cli.connection import connect, daemon_options
from signer.cli.keys.plan import key_of
from signer.cli.keys.rotating import list_option, read_list
from signer.cli.operations.arguments import FILE, certificates_in, write_file
from signer.cli.operations.flow import LONG, only_one, print_outcome
from signer.cli.operations.queries import finish, follow, timeout_option
from signer.cli.options import json_option
from signer.errors import OperatorError
from signer.model import KeyName

if TYPE_CHECKING:
    from signer.client import KeyVersion, Operation
    from signer.officers.approval import Proposal


class _FileOrId(click.Path):
    """A file, or the id of a rotation."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return uuid.UUID(str(value))
        except ValueError:
            return FILE.convert(value, param, ctx)


def _rotates(operation: Operation) -> bool:
    return operation.kind == "rotate"


@click.command()
@click.argument("identity", metavar="[ROTATION_ID]", required=False)
@click.option(
    "--out",
    metavar="DIR",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to; it is made if it is not there.",
)
@list_option
@daemon_options
@json_option
def requests(
    *, client_file: Path, identity: str | None, out: Path, list_file: Path | None, as_json: bool
) -> None:
    """Writes the certification requests of a rotation's new versions, one file each.

    Without ROTATION_ID it is the one rotation that waits for certificates. The files are
    named facility.key.vN.csr. Versions that have their certificate already are left out.
    With --list only those of the keys in FILE are written.

    \b
      signer keys requests --out requests --client officer-a.yaml
      for csr in requests/*.csr; do
        openssl x509 -req -in "$csr" -CA csca.pem -CAkey csca.key -days 730 -out "${csr%.csr}.pem"
      done
      signer keys certificates requests/*.pem --client officer-a.yaml
    """
    from signer.officers.approval import parse

    wanted = None if list_file is None else set(read_list(list_file))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(f"{out} cannot be made: {error.strerror}") from error
    written = []
    with connect(client_file) as client:
        identity = identity or only_one(client, "WAITING", _rotates)
        proposal = parse(client.operations.get(identity).content)
        if proposal.kind != "rotate" or not proposal.details.get("issuers"):
            raise OperatorError(f"{identity} is no rotation that waits for certificates")
        made = [
            each
            for each in client.list_key_versions()
            if may_wait(each, proposal) and (wanted is None or key_of(each.name) in wanted)
        ]
        with progress_bar("requests", len(made)) as tell:
            for done, each in enumerate(made, 1):
                request = client.get_key_version(each.name).certification_request
                if request and has_subject(request, each.name, str(proposal.details["subject"])):
                    file = out / file_name(each.name)
                    write_file(file, request.encode())
                    written.append({"key_version": each.name, "file": str(file)})
                tell(done)
    if as_json:
        click.echo(json.dumps(written, indent=2))
    else:
        click.echo(f"{len(written)} requests are in {out}")
    if len(written) > proposal.details["keys"]:
        raise OperatorError(
            f"the rotation is of {proposal.details['keys']} keys, but {len(written)} requests are"
            " like its own: name its keys with --list FILE"
        )


def may_wait(version: KeyVersion, proposal: Proposal) -> bool:
    """Whether a version may be a new one of a rotation that has no certificate yet."""
    return (
        version.state == "PRE_ACTIVE"
        and version.certificate is None
        and version.created is not None
        and version.created.timestamp() >= proposal.proposed_at
    )


def has_subject(request: str, version: str, template: str) -> bool:
    """Whether a request has the subject that a rotation's template gives for its version."""
    from cryptography import x509

    key, number = KeyName.parse(key_of(version)), version.rpartition("/")[2]
    subject = (
        template.replace("{facility}", key.facility)
        .replace("{key}", key.key)
        .replace("{version}", number)
    )
    found = x509.load_pem_x509_csr(request.encode()).subject
    return found == x509.Name.from_rfc4514_string(subject)


def file_name(version: str) -> str:
    """Returns ``facility.key.vN.csr`` for a version."""
    key = KeyName.parse(key_of(version))
    return f"{key.facility}.{key.key}.v{version.rpartition('/')[2]}.csr"


@click.command()
@click.argument("files", metavar="[ROTATION_ID] FILE...", nargs=-1, required=True, type=_FileOrId())
@click.option("--wait", "waits", is_flag=True, help="Wait for its end; the exit code is its.")
@timeout_option
@daemon_options
@json_option
def certificates(
    *,
    client_file: Path,
    files: tuple[Path | uuid.UUID, ...],
    waits: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Gives a rotation its certificates, in any order and number; PEM (with several) or DER.

    Without ROTATION_ID it is the one rotation that waits for them. Each must be for one of
    its new keys and by the authority that the officers approved.
    Certificates of authorities themselves are left out.

    \b
      signer keys certificates ID requests/*.pem --wait --client officer-a.yaml
    """
    ids = [str(each) for each in files if isinstance(each, uuid.UUID)]
    if len(ids) > 1:
        raise click.UsageError("name one rotation")
    paths = [each for each in files if isinstance(each, Path)]
    if not paths:
        raise click.UsageError("name the files of the certificates")
    found = end_entities(paths)
    if not found:
        raise OperatorError("the files have no certificates but those of authorities")
    with connect(client_file) as client:
        identity = ids[0] if ids else only_one(client, "WAITING", _rotates)
        with progress_bar("certificates", len(found)) as tell:
            operation = client.operations.import_certificates(identity, found, tell, timeout=LONG)
        if waits:
            operation = follow(client, identity, timeout)
    if waits:
        finish(operation, as_json=as_json)
    else:
        print_outcome(operation, as_json=as_json)


def end_entities(files: Iterable[Path]) -> list[bytes]:
    """Returns the certificates of files in DER, each once, without those of authorities."""
    from cryptography.hazmat.primitives.serialization import Encoding

    from signer.x509 import is_authority

    found: dict[bytes, None] = {}
    for file in files:
        for certificate in certificates_in(file):
            if not is_authority(certificate):
                found[certificate.public_bytes(Encoding.DER)] = None
    return list(found)


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how many of a list are done: a bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress

    columns = (what, BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=total)
        yield lambda done: bars.update(task, completed=done)
