"""An engine on a log of its own, with a stand-in for the HSM."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from signer.audit.format.record import RecordKind
from signer.audit.read.ledger import MAX_REQUESTS, Ledger
from signer.audit.write.log import Listener
from signer.clock import SystemClock
from signer.config.policy_documents import load_policy
from signer.event_loop import EventLoop, Threads, Turns
from signer.events import Events
from signer.hsm.front.service import Hsm
from signer.key_index import KeyIndex
from signer.model import KeyVersion
from signer.policy.usage import Usage
from signer.signing.cosigners import Cosigners
from signer.signing.engine import Engine
from signer.signing.evidence import Evidence
from signer.signing.messages import Messages
from signer.signing.repeat import Repeats
from signer.signing.request import BatchRequest, BatchResult, Served, Snapshot
from tests.stand_ins import FakeHsm, GatedDisk, small_log

ORIGIN = "test.example/log"
CLIENT = "spiffe://x/issuer"
ID = "6a9b7d3e-0000-4000-8000-000000000001"


class Stage:
    """What the engine is built from; ``capacity`` is how many request ids are remembered."""

    def __init__(
        self,
        folder: Path,
        policy: str,
        keys: Iterable[KeyVersion],
        *,
        capacity: int = MAX_REQUESTS,
        answer_bytes: int = 4 << 20,
    ) -> None:
        self.folder, self.hsm, self.disk = folder / "audit", FakeHsm(), GatedDisk()
        clock = SystemClock()
        self.ledger, self.usage = Ledger(capacity), Usage()
        self.log = small_log(
            self.folder,
            origin=ORIGIN,
            clock=clock,
            listeners=[Listener(self.ledger.apply, Ledger.KINDS, self.ledger.snapshot)],
            disk=self.disk,
        )
        (folder / "policy.yaml").write_text(policy)
        self.served = Served(Snapshot(load_policy(folder / "policy.yaml"), KeyIndex(keys, 1)))
        self.loop, turns, self.threads = EventLoop(), Turns(clock.monotonic), Threads()
        messages = Messages(turns)
        self.engine = Engine(
            self.served,
            cast("Hsm", self.hsm),
            Evidence(self.log, turns, self.loop, clock),
            Repeats(self.log, self.ledger, messages, self.threads, clock),
            messages=messages,
            cosigners=Cosigners(turns),
            turns=turns,
            usage=self.usage,
            events=Events(),
            clock=clock,
            loop=self.loop,
            answer_bytes=answer_bytes,
        )

    def sign(self, request: BatchRequest) -> BatchResult:
        """Signs a batch on the event loop, from any thread."""
        return self.loop.run(self.engine.sign_batch(request))

    def close(self) -> None:
        self.disk.gate.set()
        self.log.close()
        self.threads.close()
        self.loop.close()

    def wait_for(self, kinds: list[RecordKind]) -> None:
        """Waits until the log has these records and no others."""
        end = time.monotonic() + 30
        while self.kinds != kinds:
            assert time.monotonic() < end, self.kinds
            time.sleep(0.001)

    @property
    def kinds(self) -> list[RecordKind]:
        return [record.kind for record in self.log.records(0, 100)]

    def left(self, facility: str) -> int:
        """Items left of the one quota of a facility."""
        terms = self.served.snapshot.policy.facilities[facility].terms
        [remaining] = self.usage.remaining(facility, terms.quotas, SystemClock().now())
        return remaining
