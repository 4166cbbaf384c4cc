"""``signer audit verify``: a whole log, a part of one, or one proof."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from signer.cli.audit.place import (
    FILE,
    Place,
    all_checkpoints,
    checkpoint_option,
    needed,
    origin_of,
    origin_option,
    place_options,
    progress,
    spki_of,
)
from signer.cli.options import json_option
from signer.cli.tables import print_values
from signer.errors import OperatorError

if TYPE_CHECKING:
    from signer.audit.format.proof import Proven


@click.command()
@place_options
@checkpoint_option
@origin_option
@click.option(
    "--proof", "proof_file", metavar="FILE", type=FILE, help="Verify this proof, not a log."
)
@click.option(
    "--beginning-elsewhere",
    is_flag=True,
    help="Older segments were archived: a snapshot that a checkpoint proves may begin the log.",
)
@click.option(
    "--end-elsewhere",
    is_flag=True,
    help="This is an archive: it may end before the newest checkpoint.",
)
@json_option
def verify(
    *,
    place: Place | None,
    key_file: Path | None,
    checkpoint_files: tuple[Path, ...],
    origin: str | None,
    proof_file: Path | None,
    beginning_elsewhere: bool,
    end_elsewhere: bool,
    as_json: bool,
) -> None:
    """Verifies a whole log, or one proof. Exit code 1 if anything is wrong.

    Every record, chain, link and number is checked, and the tree is compared with
    every checkpoint: those in the log's directory and those given. A log without
    a checkpoint is not in order, for nobody has signed what it says.

    So is whatever officers must allow together: that enough of those in force have
    signed exactly what was done. A log from before there were officers says so.

    Where segments were archived, say so: a log without its beginning or its end is
    wrong otherwise. What an archive has beyond `signed_records` is proven by the
    segments that follow it, which are elsewhere.

    \b
      signer audit verify --config /etc/signer/signer.yaml --checkpoint from-the-ministry
      signer audit verify --dir /mnt/archive --beginning-elsewhere --end-elsewhere
      signer audit verify --proof proof.json --key audit.pub.pem --json
    """
    if proof_file is not None:
        key = key_file or (place and place.key)
        if key is None:
            raise click.UsageError("give --key PEM: the public audit key")
        if checkpoint_files or beginning_elsewhere or end_elsewhere:
            raise click.UsageError("--proof stands alone: it has its checkpoint in it")
        proven = _verify_proof(proof_file, spki_of(key), origin)
        print_values(_proven(proven), as_json)
        return
    elsewhere = _Elsewhere(beginning_elsewhere, end_elsewhere)
    report = _verify_log(needed(place), checkpoint_files, origin, elsewhere)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _print_report(report)
    if report["problems"]:
        sys.exit(1)


class _Elsewhere(NamedTuple):
    """Which ends of the log may be missing here."""

    beginning: bool
    end: bool


def _verify_log(
    place: Place, files: tuple[Path, ...], origin: str | None, elsewhere: _Elsewhere
) -> dict[str, Any]:
    from signer.audit.read.search import utc
    from signer.audit.read.verify import verify_log
    from signer.officers.offline_check import ApprovalFold

    origin = origin or origin_of(place)
    checkpoints, problems = all_checkpoints(place, files, origin, spki_of(place.key))
    if not checkpoints:
        problems.append("there is no checkpoint: nobody has signed what this log says")
    with progress("verifying") as advance:
        report = verify_log(
            place.directory,
            origin,
            checkpoints,
            advance,
            folds=[ApprovalFold],
            beginning_elsewhere=elsewhere.beginning,
            end_elsewhere=elsewhere.end,
        )
    control = report.fold(ApprovalFold)
    return {
        "whole": not (problems or report.problems),
        "origin": origin,
        "first": report.first,
        "records": report.records,
        "items": report.items,
        "kinds": {str(kind): count for kind, count in sorted(report.kinds.items())},
        "root": report.root.hex(),
        "checkpoints": len(checkpoints),
        "signed_records": report.covered,
        "last_time": utc(report.time_us),
        "open_intents": report.open_intents,
        "recovered": list(report.recovered),
        "overridden": list(report.overridden),
        "officers": None if control.officers is None else sorted(control.officers),
        "development": control.development,
        "operations": control.executed,
        "acts": control.acts,
        "problems": [*problems, *report.problems],
    }


def _print_report(report: dict[str, Any]) -> None:
    for problem in report["problems"]:
        click.echo(f"wrong: {problem}", err=True)
    verdict = "in order" if report["whole"] else "NOT in order"
    click.echo(f"the log {report['origin']} is {verdict}")
    values = {name: value for name, value in report.items() if name not in _TOLD}
    if values["officers"] is None:
        values["officers"] = "none are known: nothing says who had to allow what"
    print_values(values)


_TOLD = {"whole", "origin", "problems"}


def _verify_proof(path: Path, spki: bytes, origin: str | None) -> Proven:
    from signer.audit.format import proof

    # What is no UTF-8 becomes what no proof has, and is refused with the rest.
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(proof.MAX_PROOF + 1)
    return proof.verify(text, spki, origin or _origin_in(text))


def _origin_in(text: str) -> str:
    """What the log of a proof calls itself: the key's signature covers that, too."""
    try:
        note = json.loads(text)["checkpoint"]
        return str(note).split("\n", 1)[0]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise OperatorError("the proof is no JSON with a checkpoint in it") from error


def _proven(proven: Proven) -> dict[str, Any]:
    from signer.audit.read.search import utc

    return {
        "log": proven.checkpoint.origin,
        "checkpoint": proven.checkpoint.size,
        "intent": proven.intent,
        "item": proven.index,
        "outcome": proven.outcome,
        "asked": utc(proven.intent_us),
        "answered": utc(proven.outcome_us),
        "principal": proven.principal,
        "key_version": proven.key_version,
        "format": proven.format,
        "rule": proven.rule,
        "policy_sha256": proven.policy.hex(),
        "digest": proven.digest.hex(),
        "signature": proven.signature.hex() if proven.signature else None,
        "failure": proven.failure,
    }
