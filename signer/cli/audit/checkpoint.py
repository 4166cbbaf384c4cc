"""``signer audit checkpoint``: the newest checkpoint of a running daemon, believed by nobody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from signer.cli.audit.place import FILE, errors_told, origin_option, spki_of
from signer.cli.connection import connect, daemon_options
from signer.cli.options import json_option
from signer.errors import OperatorError
from signer.files import replace_file

if TYPE_CHECKING:
    from signer.audit.format.checkpoint import Checkpoint
    from signer.client import SignerClient

PROOF_SECONDS = 600.0
"""After a start the tree of a log of many millions of records is computed in several calls."""


@click.command()
@daemon_options
@click.option(
    "--key", "key_file", metavar="PEM", type=FILE, required=True, help="The public audit key."
)
@click.option(
    "--previous",
    "previous_file",
    metavar="FILE",
    type=FILE,
    help="An older checkpoint: have the daemon prove that the log has only grown since.",
)
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the checkpoint here; it may be the previous one's file.",
)
@origin_option
@json_option
def checkpoint(
    *,
    client_file: Path,
    key_file: Path,
    previous_file: Path | None,
    output: Path | None,
    origin: str | None,
    as_json: bool,
) -> None:
    """Fetches the newest checkpoint and verifies it. For auditors.

    Exit code 1 if the audit key has not signed it, or if the log is not the one
    of the previous checkpoint, grown: then nothing is written, and the checkpoint
    is shown, for the two together prove what happened.

    \b
      signer audit checkpoint --client auditor.yaml --key audit.pub.pem --output last
      signer audit checkpoint --client auditor.yaml --key audit.pub.pem \\
          --previous last --output last
    """
    with errors_told():
        spki = spki_of(key_file)
        with connect(client_file) as client:
            note = client.get_checkpoint()
            origin = origin or note.partition("\n")[0]
            newest = _verified(note, origin, spki, "what the daemon calls its checkpoint")
            previous = None
            if previous_file is not None:
                previous = _verified(_read(previous_file), origin, spki, str(previous_file))
                _refuse_other_log(client, previous, newest, note)
        if output is not None:
            replace_file(output, note)
    if as_json:
        said = {"origin": newest.origin, "size": newest.size, "root": newest.root.hex()}
        before = previous.size if previous else None
        click.echo(json.dumps({**said, "previous_size": before, "note": note}, indent=2))
        return
    click.echo(f"the log {newest.origin} has {newest.size} records; the audit key signed that")
    click.echo(f"root {newest.root.hex()}")
    if previous is not None:
        click.echo(f"it has only grown since the checkpoint of {previous.size} records")


def _verified(note: str, origin: str, spki: bytes, what: str) -> Checkpoint:
    from signer.audit.format.checkpoint import CheckpointError, NoteVerifier, parse_note

    verifier = NoteVerifier.from_spki(origin, spki)
    try:
        return parse_note(note, origin, verifier)
    except CheckpointError as error:
        raise OperatorError(f"{what} is no checkpoint of the log {origin}: {error}") from error


def _read(path: Path) -> str:
    from signer.audit.read.notes import read_note

    try:
        return read_note(path)
    except UnicodeDecodeError as error:
        raise OperatorError(f"{path} is no checkpoint: it is not text") from error


def _refuse_other_log(
    client: SignerClient, previous: Checkpoint, newest: Checkpoint, note: str
) -> None:
    """Raises OperatorError unless the daemon proves that its log begins with the previous one."""
    from signer.audit.format.merkle import verify_consistency

    if newest.size < previous.size:
        raise OperatorError(
            f"the log has {newest.size} records and had {previous.size} before: records are "
            f"gone. Keep both checkpoints; this is the daemon's:\n{note}"
        )
    proof = client.consistency_proof(previous.size, newest.size, timeout=PROOF_SECONDS)
    sizes = previous.size, newest.size
    if not verify_consistency(*sizes, previous.root, newest.root, proof):
        raise OperatorError(
            f"the daemon does not prove that its log of {newest.size} records begins with the "
            f"{previous.size} of before: records were changed, or this is another log. Keep "
            f"both checkpoints; this is the daemon's:\n{note}"
        )
