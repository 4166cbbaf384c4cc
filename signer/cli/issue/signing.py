"""Records signed twice: by their facilities as JWS, then by the ministry as certificates."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import groupby
from threading import Event
from typing import NamedTuple

from signer.cli.issue.journal import FailedRecord, IssuedCertificate, Journal
from signer.cli.issue.records import PersonRecord
from signer.client import (
    DeniedError,
    Format,
    InvalidRequestError,
    ItemResult,
    NotFoundError,
    PreconditionError,
    SignerClient,
    SignerClientError,
    UnauthenticatedError,
)
from signer.errors import OperatorError

_OF_THIS_KEY = (DeniedError, NotFoundError, PreconditionError)
"""Refusals of a facility's key, after which other facilities may still sign."""
REFUSED = (*_OF_THIS_KEY, UnauthenticatedError, InvalidRequestError)
"""Errors that say that a call signed nothing."""


GOES_ON = "what has been issued is kept: the same command goes on"
_STOPPING = b"stopping when the batches in flight are done; once more to stop at once\n"


class Draft(NamedTuple):
    """A certificate to make. ``signed`` is the facility's record if it has signed it before."""

    record: PersonRecord
    uvci: str
    signed: str


class Refusal(NamedTuple):
    """Why a record has no certificate: its line, which key refused it, and what was said."""

    line: int
    key: str
    reason: str
    message: str


class Certified(NamedTuple):
    """What became of a batch."""

    issued: list[IssuedCertificate]
    failed: list[FailedRecord]
    refusals: list[Refusal]


class TwoSignatures:
    """Makes certificates of drafts; safe to share between threads.

    ``facilities`` may sign with the key ``facility_key`` of each facility, ``ministry`` with
    ``key``. ``timeout`` is in seconds, for each call with all its attempts.
    """

    def __init__(
        self,
        facilities: SignerClient,
        ministry: SignerClient,
        journal: Journal,
        *,
        key: str,
        facility_key: str,
        timeout: float,
    ) -> None:
        self._facilities, self._ministry = facilities, ministry
        self._journal = journal
        self._key, self._facility_key = key, facility_key
        self._timeout = timeout
        self._limits: dict[str, int] = {}

    def check(self) -> None:
        """Raises SignerClientError or OperatorError if the ministry's key signs nothing for us."""
        self._limit(self._ministry, self._key)

    def certify(self, drafts: Sequence[Draft]) -> Certified:
        """Returns what became of the drafts.

        Raises SignerClientError if a call fails so that it is not known what was signed, or no
        other call would do better: then the same drafts are to be given again.
        """
        made = Certified([], [], [])
        signed = list(self._signed_by_facilities(drafts, made))
        if not signed:
            return made
        payloads = [draft.record.certificate(draft.uvci) for draft in signed]
        beside = [draft.signed.encode() for draft in signed]
        results = self._sign(self._ministry, self._key, signed, payloads, beside)
        for draft, result in zip(signed, results, strict=True):
            if result.error is not None:
                _fail(made, draft, self._key, result.error)
                continue
            record = draft.record
            made.issued.append(
                IssuedCertificate(
                    record.record,
                    record.facility,
                    record.line,
                    record.content,
                    draft.uvci,
                    draft.signed,
                    result.signature.decode(),
                    result.audit_record,
                )
            )
        return made

    def _signed_by_facilities(self, drafts: Sequence[Draft], made: Certified) -> Iterator[Draft]:
        """Yields the drafts with their facilities' records; those without are in ``made``."""
        yield from (draft for draft in drafts if draft.signed)
        unsigned = [draft for draft in drafts if not draft.signed]
        for facility, group in groupby(unsigned, lambda draft: draft.record.facility):
            key, of_one = f"facilities/{facility}/keys/{self._facility_key}", list(group)
            payloads = [draft.record.signed_by_facility(draft.uvci) for draft in of_one]
            try:
                results = self._sign(self._facilities, key, of_one, payloads)
            except _OF_THIS_KEY as error:
                for draft in of_one:
                    _fail(made, draft, key, error)
                continue
            for draft, result in zip(of_one, results, strict=True):
                if result.error is None:
                    yield draft._replace(signed=result.signature.decode())
                else:
                    _fail(made, draft, key, result.error)

    def _sign(
        self,
        client: SignerClient,
        key: str,
        drafts: Sequence[Draft],
        payloads: list[bytes],
        cosignatures: list[bytes] | None = None,
    ) -> list[ItemResult]:
        """Signs payloads: as certificates where there are cosignatures, else as JWS."""
        named = zip((draft.record.record for draft in drafts), payloads, strict=True)
        results = client.sign(
            key,
            Format.JWS if cosignatures is None else Format.HCERT,
            payloads,
            batch_items=self._limit(client, key),
            in_flight=1,
            timeout=self._timeout,
            request_id=self._journal.request_id(key, named),
            cosignatures=cosignatures,
        )
        return list(results)

    def _limit(self, client: SignerClient, key: str) -> int:
        """Returns how many items a call may have, which is asked once for each key."""
        limit = self._limits.get(key)
        if limit is None:
            found = client.get_key(key.partition("/versions/")[0], timeout=self._timeout)
            limit = self._limits[key] = found.most_items or 1
        return limit


def _fail(made: Certified, draft: Draft, key: str, error: SignerClientError) -> None:
    made.failed.append(FailedRecord(draft.record.record, draft.uvci, draft.signed))
    made.refusals.append(Refusal(draft.record.line, key, error.reason, error.message))


@contextmanager
def stop_when_asked() -> Iterator[Event]:
    """Yields what Ctrl-C and SIGTERM set; a second one ends the program at once."""
    stop = Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def ask(_number: int, _frame: object) -> None:
        stop.set()
        for number, handler in before.items():
            signal.signal(number, handler)
        os.write(2, _STOPPING)  # a signal may come in the midst of any other output

    for number in numbers:
        signal.signal(number, ask)
    try:
        yield stop
    except KeyboardInterrupt:
        raise OperatorError(f"stopped at once; {GOES_ON}") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def certify_all(
    batches: Iterable[Sequence[Draft]],
    certify: Callable[[Sequence[Draft]], Certified],
    take: Callable[[Certified], None],
    most: int,
    stopping: Callable[[], bool],
) -> None:
    """Has batches certified, ``most`` at a time; ``take`` gets what became of each.

    What is in flight is taken in any case. Then an error is raised, if there was one: one after
    which it is not known what was signed, rather than one of REFUSED.
    """
    pending: set[Future[Certified]] = set()
    errors: list[BaseException] = []
    source = iter(batches)
    pool = ThreadPoolExecutor(most, thread_name_prefix="signer-issue")
    try:
        while True:
            while not errors and not stopping() and len(pending) < most:
                batch = next(source, None)
                if batch is None:
                    break
                pending.add(pool.submit(certify, batch))
            if not pending:
                break
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for each in done:
                if (error := each.exception()) is None:
                    take(each.result())
                else:
                    errors.append(error)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if errors:
        raise min(errors, key=lambda error: isinstance(error, REFUSED))
