"""One run of ``signer issue``: read, sign, keep, then write the files."""

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from signer.cli.connection import connect
from signer.cli.issue.journal import Journal
from signer.cli.issue.outputs import Drawn, write_outputs
from signer.cli.issue.records import CertificateIssuer, PersonRecord, read_records, uvci_of
from signer.cli.issue.signing import (
    GOES_ON,
    REFUSED,
    Certified,
    Draft,
    Refusal,
    TwoSignatures,
    certify_all,
    stop_when_asked,
)
from signer.cli.output import say
from signer.cli.progress import progress
from signer.client import SignerClientError
from signer.errors import OperatorError
from signer.text import count

_REMEMBERED = 23 * 3600  # seconds; an appliance knows a request id for 24 hours
_OF_RUN = {
    "file": "the content of FILE",
    "key": "--key",
    "facility_key": "--facility-key",
    "issuer": "--country, --issuer or --uvci-prefix",
    "batch": "--batch",
}
"""The members of ``IssueJob.asked``, as the user knows them."""


class IssueJob(NamedTuple):
    """What a run is asked for: the file's path and content, and the options of the command."""

    file: Path
    data: bytes
    client_file: Path
    facility_client: Path | None
    key: str
    facility_key: str
    out: Path
    issuer: CertificateIssuer
    drawn: Drawn
    processes: int
    batch: int
    in_flight: int
    timeout: float

    @property
    def asked(self) -> dict[str, Any]:
        """What must be the same when an interrupted run goes on."""
        return {
            "file": hashlib.sha256(self.data).hexdigest(),
            "key": self.key,
            "facility_key": self.facility_key,
            "issuer": list(self.issuer),
            "batch": self.batch,
        }


class IssueRun(NamedTuple):
    """What a run did: numbers of records, why some have no certificate, and where all is.

    ``corrected`` of the ``issued`` replace an earlier certificate; ``unchanged`` were issued
    before; ``revoked`` are all that were ever replaced in this folder.
    """

    records: int
    issued: int
    corrected: int
    unchanged: int
    refusals: list[Refusal]
    revoked: int
    seconds: float
    out: Path


def run_job(job: IssueJob) -> IssueRun:
    """Issues what a file asks for. Raises ConfigError for its mistakes, and OperatorError."""
    began = time.monotonic()
    records = read_records(str(job.file), job.data, job.issuer)
    with Journal.open(job.out) as journal, stop_when_asked() as stop:
        _check_interrupted(journal, job)
        todo = sum(not journal.is_issued(each.record, each.content) for each in records)
        with progress("signing") as advance:
            tally = _Tally(lambda done: advance(done, todo))
            if todo:
                _sign(job, journal, records, tally, stop.is_set)
        if tally.done < todo:
            raise OperatorError(f"stopped after {tally.done} of {count(todo, 'record')}; {GOES_ON}")
        if journal.interrupted is not None:
            journal.end()
        with progress("writing") as show:
            write_outputs(
                *(journal, job.out, job.drawn),
                processes=job.processes,
                advance=lambda done: show(done, journal.people),
                stopping=stop.is_set,
            )
        if stop.is_set():
            raise OperatorError(f"stopped before all files were written; {GOES_ON}")
        return IssueRun(
            len(records),
            tally.issued,
            tally.corrected,
            len(records) - todo,
            sorted(tally.refusals),
            len(journal.revoked),
            time.monotonic() - began,
            job.out,
        )


class _Tally:
    """Counts what became of batches."""

    def __init__(self, show: Callable[[int], object]) -> None:
        self._show = show
        self.issued = self.corrected = 0
        self.refusals: list[Refusal] = []

    @property
    def done(self) -> int:
        return self.issued + len(self.refusals)

    def take(self, made: Certified) -> None:
        self.issued += made.issued
        self.corrected += made.corrected
        self.refusals += made.refusals
        self._show(self.done)


def _check_interrupted(journal: Journal, job: IssueJob) -> None:
    """Raises OperatorError if an interrupted run was asked for something else."""
    before, asked = journal.interrupted, job.asked
    if before is None and journal.made:
        last = journal.asked
        others = [_OF_RUN[name] for name in ("key", "issuer") if last.get(name) != asked[name]]
        if others:
            raise OperatorError(
                f"the certificates in {job.out} were made with another"
                f" {' and another '.join(others)}: give the same to correct them, or name a new"
                " folder to issue all of them anew"
            )
    if before is not None:
        others = [text for name, text in _OF_RUN.items() if before.get(name) != asked[name]]
        if others:
            raise OperatorError(
                f"the last run in {job.out} was interrupted, and {' and '.join(others)}"
                f" {'is' if len(others) == 1 else 'are'} different now: first let that run end,"
                " by its own command with its own file; else certificates could be signed twice"
            )
        age = time.time() - journal.last
        if age > _REMEMBERED:
            most = count(job.batch * job.in_flight, "certificate")
            say(
                f"the last run was interrupted {age / 3600:.0f} hours ago: of the batches that were"
                f" in flight then, up to {most} may be signed a second time",
                err=True,
            )


def _sign(
    job: IssueJob,
    journal: Journal,
    records: Sequence[PersonRecord],
    tally: "_Tally",
    stopping: Callable[[], bool],
) -> None:
    """Has all records signed that are not. Raises OperatorError."""
    fresh, made = journal.interrupted is None, journal.made
    try:
        with ExitStack() as stack:
            ministry = facilities = stack.enter_context(connect(job.client_file))
            if job.facility_client is not None:
                facilities = stack.enter_context(connect(job.facility_client))
            signatures = TwoSignatures(
                *(facilities, ministry, journal),
                key=job.key,
                facility_key=job.facility_key,
                timeout=job.timeout,
            )
            signatures.check()
            journal.begin(job.asked)
            batches = batches_of(journal, job, records)
            certify_all(batches, signatures.certify, tally.take, job.in_flight, stopping)
    except OperatorError as error:
        if not isinstance(error.__cause__, SignerClientError):
            raise
        if isinstance(error.__cause__, REFUSED) and fresh and journal.made == made:
            journal.end()  # no certificate was made: another file or key may be given
            raise
        raise OperatorError(f"{error}\n  {GOES_ON}") from error.__cause__


def batches_of(
    journal: Journal, job: IssueJob, records: Sequence[PersonRecord]
) -> Iterator[list[Draft]]:
    """Yields drafts of what is not issued, in batches that are the same each time.

    Those whose facilities' records are in the journal are one batch for each step that has them.
    The others are cut from all records, issued or not: a batch of which nothing is known is made
    of the same records again. Neighbours have one facility.
    """
    ordered = sorted(records, key=lambda each: each.facility)
    drafts = [_draft(journal, job, each) for each in ordered]
    cosigned: defaultdict[int, list[Draft]] = defaultdict(list)
    for draft in filter(None, drafts):
        if draft.before is not None:
            cosigned[draft.before.step].append(draft)
    yield from cosigned.values()
    for start in range(0, len(drafts), job.batch):
        batch = [each for each in drafts[start : start + job.batch] if each and not each.before]
        if batch:
            yield batch


def _draft(journal: Journal, job: IssueJob, record: PersonRecord) -> Draft | None:
    """Returns what is to be made of a record; None if its certificate says the same."""
    if journal.is_issued(record.record, record.content):
        return None
    uvci = uvci_of(job.issuer, journal.identity(record.record, record.content))
    return Draft(record, uvci, journal.signed_before(record.record, uvci))
