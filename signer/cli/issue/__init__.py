"""``signer issue``: an issuing system as an example, from records to certificates on paper."""

import os
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from signer.cli.completion import key_and_version_names
from signer.cli.connection import daemon_options
from signer.cli.issue.outputs import CERTIFICATES, LIST, PNG, REVOKED, SVG, Drawn
from signer.cli.issue.pages import SIZES
from signer.cli.issue.records import UVCI_DIGITS, CertificateIssuer
from signer.cli.issue.run import IssueJob, IssueRun, run_job
from signer.cli.options import FILE, NEW_FOLDER
from signer.cli.output import explained, output, say
from signer.errors import OperatorError
from signer.model import MAX_BATCH_ITEMS
from signer.text import count

_BATCH = 400
_MOST_REFUSALS = 100  # that are printed one by one


def _value(run: IssueRun) -> dict[str, Any]:
    return {
        "records": run.records,
        "issued": run.issued,
        "corrected": run.corrected,
        "unchanged": run.unchanged,
        "failed": len(run.refusals),
        "failures": [refusal._asdict() for refusal in run.refusals],
        "revoked": run.revoked,
        "seconds": round(run.seconds, 3),
        "certificates": str(run.out / CERTIFICATES),
        "list": str(run.out / LIST),
        "revoked_file": str(run.out / REVOKED),
    }


def _show(run: IssueRun) -> None:
    shown = run.refusals[:_MOST_REFUSALS]
    for refusal in shown:
        say(f"line {refusal.line}: {refusal.reason}: {refusal.message}", err=True)
    if len(run.refusals) > len(shown):
        reasons = Counter(refusal.reason for refusal in run.refusals)
        totals = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
        say(f"these are the first {len(shown)}; of all: {totals}", err=True)
    say(f"{count(run.records, 'record')}: {run.issued} issued, {run.unchanged} issued before")
    if run.corrected:
        verb = "replaces" if run.corrected == 1 else "replace"
        say(f"{run.corrected} of these {verb} an earlier certificate")
    if run.revoked:
        say(f"{run.out / REVOKED}: {run.revoked} to revoke, for `signer revocations build`")
    say(f"{run.out / LIST}: which certificate is whose")
    if run.refusals:
        kept = sum(refusal.corrects for refusal in run.refusals)
        if kept:
            verb = "keeps its" if kept == 1 else "keep their"
            say(f"{count(kept, 'record')} {verb} earlier certificate, uncorrected", err=True)
        if left := len(run.refusals) - kept:
            say(f"{count(left, 'record has', 'records have')} no certificate", err=True)
        say("the same command tries these again", err=True)


@click.command()
@output(_value, _show, ok=lambda run: not run.refusals)
@daemon_options
@click.option(
    "--key",
    required=True,
    metavar="NAME",
    shell_complete=key_and_version_names,
    help="The ministry's key: format HCERT, with the rule cosigning.",
)
@click.option(
    "--facility-client",
    metavar="FILE",
    type=FILE,
    help="The client file of a facility or a province, which signs the records; else --client.",
)
@click.option(
    "--facility-key",
    metavar="ID",
    default="records",
    show_default=True,
    help="The key of each facility that signs its records: facilities/FACILITY/keys/ID.",
)
@click.option("--out", required=True, type=NEW_FOLDER, help="The folder of this job; its state.")
@click.option("--country", default="VN", show_default=True, help="Where the doses were given.")
@click.option("--issuer", default="Ministry of Health", show_default=True, help="Who certifies.")
@click.option(
    "--uvci-prefix", metavar="TEXT", help="How UVCIs begin.  [default: URN:UVCI:01:COUNTRY:]"
)
@click.option(
    "--qr",
    "images",
    multiple=True,
    type=click.Choice([PNG[1:], SVG[1:]], case_sensitive=False),
    help="Draw the QR codes, too. Repeatable.",
)
@click.option(
    "--pages",
    type=click.Choice(SIZES, case_sensitive=False),
    help="Make a page to print for each person.",
)
@click.option(
    "--qr-level",
    type=click.Choice(list("LMQH"), case_sensitive=False),
    default="Q",
    show_default=True,
    help="Error correction of the QR codes; the policy refuses texts that do not fit.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    default=min(64, len(os.sched_getaffinity(0))),
    help="Processes that draw.  [default: one for each processor]",
)
@click.option(
    "--batch",
    metavar="N",
    type=click.IntRange(1, MAX_BATCH_ITEMS),
    default=_BATCH,
    show_default=True,
    help="Certificates a call.",
)
@click.option(
    "--in-flight", type=click.IntRange(1, 16), default=4, show_default=True, help="Batches at once."
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(1, 3600),
    default=120,
    show_default=True,
    help="For each call, with all its retries.",
)
@click.argument("file", metavar="FILE", type=FILE)
def issue(
    *,
    client_file: Path,
    key: str,
    facility_client: Path | None,
    facility_key: str,
    out: Path,
    country: str,
    issuer: str,
    uvci_prefix: str | None,
    images: tuple[str, ...],
    pages: str | None,
    qr_level: str,
    processes: int,
    batch: int,
    in_flight: int,
    timeout: float,
    file: Path,
) -> IssueRun:
    """Issues a vaccination certificate for each record in FILE, with two signatures.

    FILE is CSV (commas, semicolons or tabs) or JSON lines, in UTF-8, with the members
    record, facility, surname, forenames, born, vaccine, product, manufacturer, dose,
    doses and date; it may have surname_standard, forenames_standard and target. If it
    has mistakes, all of them are listed, and nothing is signed.

    Each record is signed by its facility as JWS; beside it, the ministry's key signs
    the certificate. The folder --out gets certificates/*.hc1, the texts of QR codes,
    and certificates.csv, which says whose they are. All files are private.

    \b
    The certificates of a file, with QR codes and pages to print:
      signer issue --client moh.yaml --facility-client province.yaml \\
        --key facilities/moh/keys/dcc --out july --qr png --pages a5 july.csv

    After an interruption give the same command again within 24 hours: it continues and
    signs nothing twice. Failed records are tried again; issued certificates stay.

    \b
    Corrected records get new certificates; the old ones are to be revoked:
      signer issue --client moh.yaml --key facilities/moh/keys/dcc \\
        --out july july-corrected.csv
      signer revocations build --client moh.yaml --country VN --expires +365d \\
        --key facilities/moh/keys/documents --of facilities/moh/keys/dcc \\
        --out revoked july/revoked.txt

    Exit codes: 0 all have a certificate, 1 at least one has none, 2 wrong usage.
    """
    if (images or pages) and find_spec("segno") is None:
        raise OperatorError("--qr and --pages need `pip install 'signer-appliance[issue]'`")
    with explained(file, "read"):
        data = file.read_bytes()
    job = IssueJob(
        file=file,
        data=data,
        client_file=client_file,
        facility_client=facility_client,
        key=key,
        facility_key=facility_key,
        out=out,
        issuer=_issuer(country, issuer, uvci_prefix),
        drawn=Drawn(tuple(f".{kind}" for kind in sorted(set(images))), pages or "", qr_level),
        processes=processes,
        batch=batch,
        in_flight=in_flight,
        timeout=timeout,
    )
    return run_job(job)


def _issuer(country: str, name: str, prefix: str | None) -> CertificateIssuer:
    """Returns what all certificates say; raises UsageError if none may say it."""
    if len(country) != 2 or not (country.isascii() and country.isalpha() and country.isupper()):
        raise click.UsageError(f"--country is {country}: expected two capital letters, as in VN")
    made = CertificateIssuer(country, name, prefix or f"URN:UVCI:01:{country}:")
    for option, text, most in (
        ("--issuer", made.name, 80),
        ("--uvci-prefix", made.uvci_prefix, 80 - UVCI_DIGITS),
    ):
        if not (text.isprintable() and 0 < len(text) <= most):
            raise click.UsageError(f"{option} should be 1 to {most} characters of text")
    return made
