"""``signer audit checkpoint``: fetches and verifies the newest checkpoint of a running daemon."""

from pathlib import Path

import click

from signer.audit.format.checkpoint import Checkpoint, CheckpointError, NoteVerifier
from signer.audit.format.merkle import verify_consistency
from signer.audit.read.notes import read_note
from signer.cli.audit.log_files import origin_option, readable_errors, spki_of
from signer.cli.connection import connect, daemon_options
from signer.cli.options import FILE, NEW_FILE, json_option
from signer.cli.output import print_json, say
from signer.client import SignerClient
from signer.errors import OperatorError
from signer.files import replace_file
from signer.text import count


@click.command()
@daemon_options
@click.option(
    "--key", "key_file", metavar="PEM", type=FILE, required=True, help="The public audit key."
)
@click.option(
    "--previous",
    "previous_file",
    type=FILE,
    help="An older checkpoint: the daemon has to prove that the log has only grown since.",
)
@click.option(
    "--output",
    type=NEW_FILE,
    help="Write the checkpoint here; it may be the file of the previous one.",
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

    Exit code 1 if the audit key has not signed it, or if the log is not a
    continuation of the previous checkpoint: then nothing is written, and the
    checkpoint is printed, because the two together are evidence.

    \b
      signer audit checkpoint --client auditor.yaml --key audit.pub.pem \\
        --output last
      signer audit checkpoint --client auditor.yaml --key audit.pub.pem \\
          --previous last --output last
    """
    with readable_errors():
        spki = spki_of(key_file)
        with connect(client_file) as client:
            note = client.get_checkpoint()
            origin = origin or note.partition("\n")[0]
            newest = _verified(note, origin, spki, "the daemon's answer")
            previous = None
            if previous_file is not None:
                previous = _verified(_read(previous_file), origin, spki, str(previous_file))
                _refuse_other_log(client, previous, newest, note)
        if output is not None:
            replace_file(output, note)
    if as_json:
        values = {"origin": newest.origin, "size": newest.size, "root": newest.root.hex()}
        before = previous.size if previous else None
        print_json({**values, "previous_size": before, "note": note})
        return
    say(
        f"the log {newest.origin} has {count(newest.size, 'record')}; the audit key has signed that"
    )
    say(f"root {newest.root.hex()}")
    if previous is not None:
        say(f"it has only grown since the checkpoint of {count(previous.size, 'record')}")


def _verified(note: str, origin: str, spki: bytes, what: str) -> Checkpoint:
    try:
        return NoteVerifier.from_spki(origin, spki).parse(note)
    except CheckpointError as error:
        raise OperatorError(f"{what} is not a checkpoint of the log {origin}: {error}") from error


def _read(path: Path) -> str:
    try:
        return read_note(path)
    except UnicodeDecodeError as error:
        raise OperatorError(f"{path} is not a checkpoint: it is not text") from error


def _refuse_other_log(
    client: SignerClient, previous: Checkpoint, newest: Checkpoint, note: str
) -> None:
    """Raises OperatorError unless the daemon proves that its log begins with the previous one."""
    if newest.size < previous.size:
        raise OperatorError(
            f"the log has {count(newest.size, 'record')} and had {previous.size} before: records"
            f" are missing. Keep both checkpoints; this is the daemon's:\n{note}"
        )
    sizes = previous.size, newest.size
    # After a start the tree of a log with many million records is computed in several calls.
    proof = client.consistency_proof(*sizes, timeout=600.0)
    if not verify_consistency(*sizes, previous.root, newest.root, proof):
        raise OperatorError(
            f"the daemon does not prove that its log of {count(newest.size, 'record')} begins with"
            f" the previous {previous.size}: records were changed, or this is another log. Keep "
            f"both checkpoints; this is the daemon's:\n{note}"
        )
