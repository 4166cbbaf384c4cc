"""Records signed twice: by their facilities as JWS, then by the ministry as certificates."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import groupby, zip_longest
from threading import Event
from typing import NamedTuple

from signer.cli.issue.journal import CosignedRecord, IssuedCertificate, Journal, SignedBefore
from signer.cli.issue.records import PersonRecord
from signer.client import (
    DeniedError,
    Format,
    InvalidRequestError,
    ItemResult,
    Key,
    NotFoundError,
    PreconditionError,
    SignerClient,
    SignerClientError,
    UnauthenticatedError,
)
from signer.errors import OperatorError

_OF_THIS_KEY = (DeniedError, NotFoundError, PreconditionError)
"""Refusals of a facility's key, after which other facilities may still sign."""
_QUOTA = "QUOTA_EXCEEDED"
"""Another such reason: the quota is that of the facility."""
REFUSED = (*_OF_THIS_KEY, UnauthenticatedError, InvalidRequestError)
"""Errors that say that a call signed nothing."""


GOES_ON = "what has been issued is kept: the same command goes on"
_STOPPING = b"stopping when the batches in flight are done; once more to stop at once\n"


class Draft(NamedTuple):
    """A certificate to make. ``before`` is what the facility has signed of it, if it is known."""

    record: PersonRecord
    uvci: str
    before: SignedBefore | None


class Refusal(NamedTuple):
    """Why a record got no certificate: its line, which key refused it, and what was said.

    ``corrects``: an earlier certificate of it stays in force.
    """

    line: int
    key: str
    reason: str
    message: str
    corrects: bool


class Certified(NamedTuple):
    """What became of a batch: ``corrected`` of the ``issued`` replace another certificate."""

    issued: int
    corrected: int
    refusals: list[Refusal]


class TwoSignatures:
    """Makes certificates of drafts and keeps them in the journal; safe to share between threads.

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
        """Raises SignerClientError or OperatorError if the ministry's key makes no certificates.

        It comes before the first signature of a facility, which would be for nothing.
        """
        name, _, version = self._key.partition("/versions/")
        found = self._ministry.get_key(name, timeout=self._timeout)
        if fault := _fault(found, named_version=bool(version)):
            raise OperatorError(f"{name} {fault}; nothing was signed")

    def certify(self, drafts: Sequence[Draft]) -> Certified:
        """Makes the certificates of drafts, and adds them to the journal.

        What facilities have signed of them is known of all drafts, in one step of the journal, or
        of none. Raises SignerClientError if a call fails so that it is not known what was signed,
        or no other call would do better: then the same drafts are to be given again.
        """
        refusals: list[Refusal] = []
        if any(draft.before is None for draft in drafts):
            cosigned = self._cosign(drafts, refusals)
        else:
            cosigned = [(draft, draft.before.signed) for draft in drafts if draft.before]
        if not cosigned:
            return Certified(0, 0, refusals)
        payloads = [draft.record.certificate(draft.uvci) for draft, _ in cosigned]
        beside = [signed.encode() for _, signed in cosigned]
        of_all = [draft for draft, _ in cosigned]
        results, error = self._sign(self._ministry, self._key, of_all, payloads, beside)
        issued, failed, refused = list[IssuedCertificate](), list[str](), list[str]()
        for draft, result in zip(of_all, results, strict=False):
            if result.error is None:
                issued.append(_issued(draft, result))
                continue
            failed.append(draft.record.record)
            refusals.append(self._refusal(draft, self._key, result.error))
            if result.error.retry_after is None:  # perhaps for what the facility has signed
                refused.append(draft.record.record)
        corrected = sum(self._journal.has(each.record) for each in issued)
        if results:
            self._journal.add_issued(issued, failed, refused)
        if error is not None:
            raise error
        return Certified(len(issued), corrected, refusals)

    def _cosign(self, drafts: Sequence[Draft], refusals: list[Refusal]) -> list[tuple[Draft, str]]:
        """Returns the drafts of which facilities sign the record, with that; it is in the journal.

        The others are among ``refusals``.
        """
        cosigned, failed = list[tuple[Draft, str]](), list[str]()
        for facility, group in groupby(drafts, lambda draft: draft.record.facility):
            key, of_one = f"facilities/{facility}/keys/{self._facility_key}", list(group)
            payloads = [draft.record.signed_by_facility(draft.uvci) for draft in of_one]
            results, refused = self._sign(self._facilities, key, of_one, payloads)
            for draft, result in zip_longest(of_one, results):
                error = refused if result is None else result.error
                if error is None:
                    cosigned.append((draft, result.signature.decode()))
                else:
                    failed.append(draft.record.record)
                    refusals.append(self._refusal(draft, key, error))
        rows = [
            CosignedRecord(draft.record.record, draft.record.facility, draft.uvci, signed)
            for draft, signed in cosigned
        ]
        self._journal.add_cosigned(rows, failed)
        return cosigned

    def _sign(
        self,
        client: SignerClient,
        key: str,
        drafts: Sequence[Draft],
        payloads: list[bytes],
        cosignatures: list[bytes] | None = None,
    ) -> tuple[list[ItemResult], SignerClientError | None]:
        """Signs payloads: as certificates where there are cosignatures, else as JWS.

        Returns what became of the first ones, and why the key signed no others: a batch may be
        several calls. Raises SignerClientError if it is not known what was signed, or other keys
        would do no better.
        """
        results: list[ItemResult] = []
        named = zip((draft.record.record for draft in drafts), payloads, strict=True)
        try:
            results.extend(
                client.sign(
                    key,
                    Format.JWS if cosignatures is None else Format.HCERT,
                    payloads,
                    batch_items=self._limit(client, key),
                    in_flight=1,
                    timeout=self._timeout,
                    request_id=self._journal.request_id(key, named),
                    cosignatures=cosignatures,
                )
            )
        except SignerClientError as error:
            if not (isinstance(error, _OF_THIS_KEY) or error.reason == _QUOTA):
                raise
            return results, error
        return results, None

    def _refusal(self, draft: Draft, key: str, error: SignerClientError) -> Refusal:
        corrects = self._journal.has(draft.record.record)
        return Refusal(draft.record.line, key, error.reason, error.message, corrects)

    def _limit(self, client: SignerClient, key: str) -> int:
        """Returns how many items a call may have, which is asked once for each key."""
        limit = self._limits.get(key)
        if limit is None:
            found = client.get_key(key.partition("/versions/")[0], timeout=self._timeout)
            limit = self._limits[key] = found.most_items or 1
        return limit


def _fault(key: Key, *, named_version: bool) -> str:
    """Returns why a key makes no certificates with two signatures, and the remedy, or ""."""
    if Format.HCERT not in key.formats:
        return "does not sign HCERT for this client: name another key or another client file"
    if not key.needs_cosignatures:
        return (
            "would sign without the facilities, its policy has no rule cosigning: give that rule to"
            " the key, or name a key that has it"
        )
    if named_version:
        return ""
    if key.primary is None:
        return "has no active version: have officers activate one"
    return key.primary.suspension and f"signs nothing: {key.primary.suspension}"


def _issued(draft: Draft, result: ItemResult) -> IssuedCertificate:
    record = draft.record
    return IssuedCertificate(
        record.record,
        record.facility,
        record.line,
        record.content,
        draft.uvci,
        result.signature.decode(),
        result.audit_record,
    )


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
