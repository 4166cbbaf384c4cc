"""``signer audit verify``: a whole log, a part of one, or one proof."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import click

from signer.audit.format import proof
from signer.audit.read.in_hand import InHand, compare
from signer.audit.read.ledger_check import LedgerFold
from signer.audit.read.policy_texts import text_problems
from signer.audit.read.search import utc
from signer.audit.read.verify import Fold, Report, verify_log
from signer.cli.audit.finding import message_options
from signer.cli.audit.log_files import (
    LogFiles,
    checkpoint_option,
    log_or_key_options,
    needed,
    origin_option,
    spki_of,
)
from signer.cli.audit.printing import finding, print_proof, print_report
from signer.cli.options import FILE
from signer.cli.output import output
from signer.cli.progress import progress
from signer.errors import OperatorError
from signer.officers.change_check import ChangeFold
from signer.officers.keys_record import Joined


@runtime_checkable
class _Deciding(Protocol):
    """The fold that decides intents once more; its module is imported only with ``--decide``."""

    decided: int


class _Asked(NamedTuple):
    """How a log is verified."""

    beginning_elsewhere: bool
    end_elsewhere: bool
    operations_elsewhere: bool
    decide: bool


def _print(values: dict[str, Any]) -> None:
    if "problems" in values:
        print_report(values)
    else:
        print_proof(values)


@click.command()
@output(lambda values: values, _print, ok=lambda values: not values.get("problems"))
@log_or_key_options
@checkpoint_option
@origin_option
@click.option("--proof", "proof_file", type=FILE, help="Verify this proof instead of a log.")
@message_options
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
    messages: list[InHand],
    **asked: bool,
) -> dict[str, Any]:
    """Verifies a whole log, or one proof. Exit code 1 if anything is wrong.

    Checks every record, chain, link and number, and compares the tree with every
    checkpoint: those in the log's directory and those given. A log without a
    checkpoint is not in order, because it is not signed.

    Checks that the log accounts for every change: that enough of the officers in force
    have signed exactly what was done, once; that states of keys follow the table; that
    nothing was signed with what was stopped; that every intent names the policy in
    force, and that its text is kept. With --decide, each intent is decided once more
    from that text; this needs `pip install 'signer-appliance[server]'`.

    A proof is compared with the message in hand, if one is given with --file.

    If segments were archived, say so: a log without its beginning or end is wrong
    otherwise. The records of an archive beyond `signed_records` are proven by the
    segments that follow, which are elsewhere.

    \b
      signer audit verify --config /etc/signer/signer.yaml \\
        --checkpoint from-the-ministry
      signer audit verify --config /etc/signer/signer.yaml --decide
      signer audit verify --dir /mnt/archive --beginning-elsewhere --end-elsewhere
      signer audit verify --proof proof.json --key audit.pub.pem \\
        --file certificate.txt
    """
    if proof_file is not None:
        key = key_file or (log and log.key)
        if key is None:
            raise click.UsageError("give --key PEM: the public audit key")
        if checkpoint_files or any(asked.values()):
            raise click.UsageError(
                "--proof goes only with --key, --origin, --file and --signature: a proof contains"
                " its checkpoint, and says nothing of the rest of the log"
            )
        return _verify_proof(proof_file, spki_of(key), origin, messages)
    if messages:
        raise click.UsageError("--file goes with --proof; `signer audit find` searches the log")
    log = needed(log)
    return _verify_log(log, origin or log.origin(), checkpoint_files, _Asked(**asked))


def _verify_log(
    log: LogFiles, origin: str, checkpoint_files: tuple[Path, ...], asked: _Asked
) -> dict[str, Any]:
    checkpoints, problems = log.checkpoints(checkpoint_files, origin)
    if not checkpoints:
        problems.append("the log has no checkpoint: it is not signed")
    changes = partial(ChangeFold, origin, operations_elsewhere=asked.operations_elsewhere)
    folds: list[Callable[[], Fold]] = [changes, LedgerFold]
    if asked.decide:
        folds.append(_decision_fold(log.directory))
    with progress("verifying") as advance:
        report = verify_log(
            log.directory,
            origin,
            checkpoints,
            advance,
            folds=folds,
            beginning_elsewhere=asked.beginning_elsewhere,
            end_elsewhere=asked.end_elsewhere,
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
    changes = report.fold(ChangeFold)
    officers = changes.approvals
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
        "joined": None if changes.joined is None else _joined(changes.joined),
        "operations": officers.executed,
        "acts": officers.acts,
        "decided_intents": next(
            (fold.decided for fold in report.folds if isinstance(fold, _Deciding)), None
        ),
        "problems": problems,
    }


def _joined(joined: Joined) -> dict[str, Any]:
    """Returns how a further appliance began the log."""
    if joined.reason:
        return {"without_log": joined.reason}
    return {"log": joined.origin, "records": joined.records, "root": joined.root.hex()}


def _verify_proof(
    path: Path, spki: bytes, origin: str | None, messages: list[InHand]
) -> dict[str, Any]:
    # Bytes that are not UTF-8 become characters that no proof has, and are refused with them.
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(proof.MAX_PROOF + 1)
    proven = proof.verify(text, spki, origin or _origin_in(text))
    compared = compare(messages, proven.digest, proven.signature) if messages else None
    if compared is not None and not compared.holds:
        raise OperatorError(
            f"the proof is valid, but not of the message in hand: it is of item {proven.index} of"
            f" intent {proven.intent}. {finding(compared)}"
        )
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
        "compared": None if compared is None else str(compared),
    }


def _origin_in(text: str) -> str:
    """Returns the name of the log in a proof; the key's signature covers it, too."""
    try:
        note = json.loads(text)["checkpoint"]
        return str(note).split("\n", 1)[0]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise OperatorError("the proof is not JSON with a checkpoint") from error
