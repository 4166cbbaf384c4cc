"""``signer audit verify``: a whole log, a part of one, or one proof."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from signer.audit.format import proof
from signer.audit.read.ledger_check import LedgerFold
from signer.audit.read.policy_texts import text_problems
from signer.audit.read.search import utc
from signer.audit.read.verify import Fold, Report, verify_log
from signer.cli.audit.log_files import (
    LogFiles,
    checkpoint_option,
    log_or_key_options,
    needed,
    origin_option,
    spki_of,
)
from signer.cli.options import FILE
from signer.cli.output import output, print_values, say
from signer.cli.progress import progress
from signer.errors import OperatorError
from signer.officers.change_check import ChangeFold
from signer.text import plain


def _print(values: dict[str, Any]) -> None:
    if "problems" not in values:  # of a proof
        print_values(values)
        return
    for problem in values["problems"]:
        say(f"wrong: {plain(problem)}", err=True)
    verdict = "in order" if values["whole"] else "NOT in order"
    say(f"the log {values['origin']} is {verdict}")
    printed = {"whole", "origin", "problems"}
    rest = {name: value for name, value in values.items() if name not in printed}
    if rest["officers"] is None:
        rest["officers"] = "none are known: the log does not say who had to approve what"
    print_values(rest)


@click.command()
@output(lambda values: values, _print, ok=lambda values: not values.get("problems"))
@log_or_key_options
@checkpoint_option
@origin_option
@click.option("--proof", "proof_file", type=FILE, help="Verify this proof instead of a log.")
@click.option(
    "--beginning-elsewhere",
    is_flag=True,
    help="Older segments were archived: the log may begin with a snapshot that a checkpoint "
    "proves.",
)
@click.option(
    "--end-elsewhere",
    is_flag=True,
    help="This is an archive: it may end before the newest checkpoint.",
)
@click.option(
    "--operations-elsewhere",
    is_flag=True,
    help="Other appliances share the registry: before the log's first baseline, what they did is "
    "in their logs only.",
)
@click.option(
    "--decide", is_flag=True, help="Decide every intent once more from the kept text of its policy."
)
def verify(
    *,
    log: LogFiles | None,
    key_file: Path | None,
    checkpoint_files: tuple[Path, ...],
    origin: str | None,
    proof_file: Path | None,
    beginning_elsewhere: bool,
    end_elsewhere: bool,
    operations_elsewhere: bool,
    decide: bool,
) -> dict[str, Any]:
    """Verifies a whole log, or one proof. Exit code 1 if anything is wrong.

    Checks every record, chain, link and number, and compares the tree with every
    checkpoint: those in the log's directory and those given. A log without a
    checkpoint is not in order, because nobody has signed it.

    Checks for every operation that enough of the officers in force have signed
    exactly what was done. A log from before there were officers says so.

    If segments were archived, say so: a log without its beginning or end is wrong
    otherwise. The records of an archive beyond `signed_records` are proven by the
    segments that follow, which are elsewhere.

    \b
      signer audit verify --config /etc/signer/signer.yaml --checkpoint from-the-ministry
      signer audit verify --dir /mnt/archive --beginning-elsewhere --end-elsewhere
      signer audit verify --proof proof.json --key audit.pub.pem --json
    """
    if proof_file is not None:
        key = key_file or (log and log.key)
        if key is None:
            raise click.UsageError("give --key PEM: the public audit key")
        if checkpoint_files or beginning_elsewhere or end_elsewhere:
            raise click.UsageError(
                "--proof cannot be used with --checkpoint, --beginning-elsewhere and "
                "--end-elsewhere: a proof contains its checkpoint"
            )
        return _verify_proof(proof_file, spki_of(key), origin)
    log = needed(log)
    origin = origin or log.origin()
    checkpoints, problems = log.checkpoints(checkpoint_files, origin)
    if not checkpoints:
        problems.append("there is no checkpoint: nobody has signed this log")
    folds: list[Callable[[], Fold]] = [
        partial(ChangeFold, operations_elsewhere=operations_elsewhere),
        LedgerFold,
    ]
    if decide:
        folds.append(_decision_fold(log.directory))
    with progress("verifying") as advance:
        report = verify_log(
            log.directory,
            origin,
            checkpoints,
            advance,
            folds=folds,
            beginning_elsewhere=beginning_elsewhere,
            end_elsewhere=end_elsewhere,
        )
    problems += report.problems
    problems += text_problems(log.directory, report.fold(ChangeFold).policies)
    return _described(report, origin, len(checkpoints), problems)


def _decision_fold(directory: Path) -> Callable[[], Fold]:
    """Returns what decides intents once more; raises OperatorError without the packages for it."""
    try:
        from signer.audit.read.decide_again import DecisionFold
    except ModuleNotFoundError as error:
        raise OperatorError(
            f"--decide reads policies and needs the Python package {error.name}: install"
            " `pip install 'signer-appliance[server]'`, or verify without --decide"
        ) from error
    return partial(DecisionFold, directory)


def _described(
    report: Report, origin: str, checkpoints: int, problems: list[str]
) -> dict[str, Any]:
    officers = report.fold(ChangeFold).approvals
    return {
        "whole": not problems,
        "origin": origin,
        "first": report.first,
        "records": report.records,
        "items": report.items,
        "kinds": {str(kind): count for kind, count in sorted(report.kinds.items())},
        "root": report.root.hex(),
        "checkpoints": checkpoints,
        "signed_records": report.covered,
        "last_time": utc(report.time_us),
        "open_intents": report.open_intents,
        "recovered": list(report.recovered),
        "overridden": list(report.overridden),
        "officers": None if officers.officers is None else sorted(officers.officers),
        "development": officers.development,
        "operations": officers.executed,
        "acts": officers.acts,
        "problems": problems,
    }


def _verify_proof(path: Path, spki: bytes, origin: str | None) -> dict[str, Any]:
    # Bytes that are not UTF-8 become characters that no proof has, and are refused with them.
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(proof.MAX_PROOF + 1)
    proven = proof.verify(text, spki, origin or _origin_in(text))
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


def _origin_in(text: str) -> str:
    """Returns the name of the log in a proof; the key's signature covers it, too."""
    try:
        note = json.loads(text)["checkpoint"]
        return str(note).split("\n", 1)[0]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise OperatorError("the proof is not JSON with a checkpoint") from error
