"""A long log: what a start reads of it, and that it knows all the rest.

The log is written by the code that signs, the HSM aside: intents and outcomes of
10 million items in batches, then single items with request ids.
"""

import asyncio
import hashlib
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from signer.audit.format.batch_records import IntentRecord
from signer.audit.format.checkpoint import Checkpoint
from signer.audit.format.record import RecordKind, Value
from signer.audit.format.segments import Frame, Header, Segment, list_segments, open_segment
from signer.audit.read import replay
from signer.audit.read.ledger import Ledger
from signer.audit.read.verify import verify_log
from signer.audit.write.log import Listener
from signer.audit.write.recovery import SEGMENT_BYTES
from signer.clock import SystemClock
from signer.event_loop import EventLoop, Threads, Turns
from signer.hsm.front.chunks import Signed
from signer.model import Format, KeyName, KeyVersion
from signer.policy.usage import Usage
from signer.policy.values import Quota
from signer.signing.evidence import Evidence
from signer.signing.messages import Messages
from signer.signing.repeat import Repeats
from signer.signing.request import BatchRequest
from tests.stand_ins import key_version, small_log

ORIGIN = "signer.example/scale"
FACILITIES = 50
BATCH = 500
BATCHES = 20_000
SINGLES = 60_000
CALLERS = 8
LARGEST_SNAPSHOT = 16 << 20
NOW = 1_760_000_000
QUOTAS = [Quota(100_000_000, length) for length in (60, 3600, 86_400)]
DIGESTS = [hashlib.sha256(b"%d" % number).digest() for number in range(BATCH)]
SIGNATURES = [digest * 2 for digest in DIGESTS]


class Site:
    """A log and what is folded from it, as a daemon has them."""

    def __init__(self, folder: Path, checkpoint: Checkpoint | None = None) -> None:
        self.heard: list[tuple[int, RecordKind]] = []
        clock = SystemClock()
        self.ledger, self.usage = Ledger(), Usage()
        self.log = small_log(
            folder,
            origin=ORIGIN,
            clock=clock,
            checkpoints=[checkpoint] if checkpoint else [],
            listeners=[
                Listener(lambda record: self.heard.append((record.seq, record.kind))),
                Listener(self.ledger.apply, Ledger.KINDS, self.ledger.snapshot),
            ],
        )
        self.loop, turns = EventLoop(), Turns(clock.monotonic)
        self.evidence = Evidence(self.log, turns, self.loop, clock)
        self.repeats = Repeats(self.log, self.ledger, Messages(turns), Threads(), clock)
        self.usage.restore(self.ledger.windows(), self.ledger.keys())

    def close(self) -> None:
        self.log.close()
        self.loop.close()

    async def sign(self, number: int, items: int, request_id: str = "") -> None:
        """What the pipeline charges and records of one batch."""
        request = request_of(number, request_id)
        intent = intent_of(number, request)
        assert self.usage.charge(intent.facility, QUOTAS, items, intent.now) is None
        intents = [(intent.to_fields(), DIGESTS[:items])]
        principal = request.principal
        [seq] = await self.evidence.intend(principal, intents, time.monotonic() + 60)
        signed = Signed(SIGNATURES[:items], {})
        outcome = await self.evidence.outcome(seq, principal, version_of(request), signed)
        await self.evidence.conclude([outcome])

    async def sign_all(self, numbers: Iterator[int], items: int, names: Sequence[str]) -> None:
        """Signs batches one after the other; several callers may share the numbers."""
        for number in numbers:
            await self.sign(number, items, names[number] if names else "")

    async def answered(self, request: BatchRequest) -> list[bytes]:
        """The signatures that a repetition of a request finds."""
        earlier = await self.repeats.claim(request, content_of(request))
        assert earlier is not None
        return earlier.signed.signatures

    def folded(self) -> Mapping[str, Value]:
        assert not self.ledger.forgotten
        return self.ledger.snapshot()

    def used(self) -> list[tuple[str, int, tuple[int, ...]]]:
        """By facility the items ever, and what is left of the quotas."""
        now = NOW + BATCHES // 10
        return [
            (facility, items, self.usage.remaining(facility, QUOTAS, now))
            for facility, items in self.usage.busiest(FACILITIES)
        ]


def request_of(number: int, request_id: str) -> BatchRequest:
    facility = f"01-{number % FACILITIES:03d}"
    return BatchRequest(
        principal=f"spiffe://signer.example/clinic/{facility}",
        key=KeyName(facility, "records"),
        version=None,
        format=Format.MESSAGE,
        payloads=[b"%d" % number],
        deadline=0,
        request_id=request_id,
        call_id=str(uuid.UUID(int=number)),
    )


def content_of(request: BatchRequest) -> bytes:
    return hashlib.sha256(request.content_head() + b"".join(request.payloads)).digest()


def version_of(request: BatchRequest) -> KeyVersion:
    return key_version(
        key=request.key, token="signer", cka_id=b"cka", kid=b"kid-of-8", thumbprint="thumbprint"
    )


def intent_of(number: int, request: BatchRequest) -> IntentRecord:
    facility = request.key.facility
    return IntentRecord(
        principal=request.principal,
        request_id=request.request_id,
        call_id=request.call_id,
        payload_hash=content_of(request),
        key_version=version_of(request).name,
        kid=b"kid-of-8",
        format=str(request.format),
        rule=f"facilities.{facility}.clients",
        policy=hashlib.sha256(b"policy").digest(),
        facility=facility,
        group="01",
        now=NOW + min(number, BATCHES) // 10,
        hcert=None,
        asked=1,
        failed={},
    )


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("scale") / "audit"
    yield folder
    shutil.rmtree(folder)


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[Segment]]:
    """Notes which segments are opened to be read."""
    opened: set[Segment] = set()

    @contextmanager
    def open_and_note(segment: Segment) -> Iterator[tuple[Header, Iterator[Frame]]]:
        opened.add(segment)
        with open_segment(segment) as read:
            yield read

    with monkeypatch.context() as patched:
        patched.setattr(replay, "open_segment", open_and_note)
        yield opened


def say(text: str) -> None:
    """A figure of this machine, for whoever runs the test with -s."""
    print(f"\n{text}")


@pytest.mark.torture
def test_a_start_after_10_million_items_reads_from_the_newest_snapshot_on(
    long_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(long_log)
    site.loop.run(site.sign_all(iter(range(BATCHES)), BATCH, ()))
    names = [str(uuid.UUID(int=number)) for number in range(SINGLES)]

    async def singles() -> None:
        numbers = iter(range(SINGLES))
        await asyncio.gather(*(site.sign_all(numbers, 1, names) for _ in range(CALLERS)))

    site.loop.run(singles())
    site.close()
    before = site.folded(), site.used(), site.log.tree_head()
    assert sum(items for _, items, _ in site.used()) == BATCHES * BATCH + SINGLES

    segments = list_segments(long_log)
    size = sum(segment.path.stat().st_size for segment in segments)
    newest = Checkpoint(ORIGIN, *site.log.tree_head())
    with watched(monkeypatch) as opened:
        started = time.perf_counter()
        again = Site(long_log, newest)
        seconds = time.perf_counter() - started
    say(f"{len(segments)} segments, {size} bytes: open for writing after {seconds:.2f} s")
    assert opened == {segments[-1]}
    assert segments[-1].path.stat().st_size <= SEGMENT_BYTES + LARGEST_SNAPSHOT
    assert again.heard[0] == (segments[-1].first, RecordKind.SNAPSHOT)
    assert len(again.heard) == newest.size - segments[-1].first
    assert (again.folded(), again.used(), again.log.tree_head()) == before

    # What was answered before the snapshot is answered again.
    request = request_of(0, names[0])
    assert again.loop.run(again.answered(request)) == SIGNATURES[:1]
    again.loop.run(again.sign(SINGLES, 1))
    again.close()

    head = Checkpoint(ORIGIN, *again.log.tree_head())
    started = time.perf_counter()
    report = verify_log(long_log, ORIGIN, [newest, head])
    seconds = time.perf_counter() - started
    say(f"all {report.items} items verified in {seconds:.1f} s")
    assert report.problems == ()
    assert report.items == BATCHES * BATCH + SINGLES + 1
