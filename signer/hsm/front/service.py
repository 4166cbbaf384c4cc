"""All tokens together: signing, and what is stopped on them."""

import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any

from signer.hsm.front.chunks import Signed, SignJob
from signer.hsm.front.pool import Admission, Pool
from signer.hsm.front.router import Router
from signer.hsm.front.slot import WorkerStatus
from signer.hsm.spec import FailureKind
from signer.model import KeyVersion, Suspended

OTHERS_SECONDS = 5.0
"""How long a start waits for other tokens once one serves."""
_LOOK_SECONDS = 0.02


class Hsm:
    """Passes each call to pools of tokens that hold the key; ``pools`` are by their labels.

    An appliance may lack a token that others of its deployment have.

    ``admit`` and ``sign`` are for the event loop, the other methods for any thread; see Pool.
    """

    def __init__(self, pools: Mapping[str, Pool]) -> None:
        self.pools = pools
        self._router = Router(pools)

    def start(self) -> None:
        """Starts all workers; does not wait for them."""
        for pool in self.pools.values():
            pool.start()

    def wait_for_outcomes(self, seconds: float) -> dict[str, tuple[FailureKind | None, str]]:
        """Waits until each token serves or has failed; returns failures and their texts.

        Once one token serves, the others are waited for only a little longer.
        """
        pools = self.pools.values()
        end, one_serves = time.monotonic() + seconds, False
        while not all(pool.settled for pool in pools) and time.monotonic() < end:
            if not one_serves and any(pool.serving for pool in pools):
                one_serves, end = True, min(end, time.monotonic() + OTHERS_SECONDS)
            time.sleep(_LOOK_SECONDS)
        return {label: pool.wait_for_outcome(0) for label, pool in self.pools.items()}

    def close(self) -> None:
        for pool in self.pools.values():
            pool.close()

    def admit(self, job: SignJob) -> Admission:
        """Decides whether a batch may be signed now by tokens that hold its key."""
        return self._router.admit(job)

    def sign(self, admission: Admission) -> Coroutine[Any, Any, Signed]:
        """Returns the coroutine that signs an admitted batch; see Pool.sign."""
        return self._router.sign(admission)

    async def sign_now(self, job: SignJob) -> Signed:
        """Admits and signs a job that needs no intent of its own: a checkpoint of the log."""
        with self.admit(job) as admission:
            return await self.sign(admission)

    def keys_changed(self, versions: Iterable[KeyVersion]) -> None:
        """Passes on the versions whose keys were created or destroyed; see Pool.keys_changed."""
        changed = [v for v in versions if v.wrapped is None]  # the others come with each chunk
        for token, pool in self.pools.items():
            if ids := [i for v in changed if (i := v.cka_id_on(token)) is not None]:
                pool.keys_changed(ids)

    def stop_keys(self, versions: Mapping[KeyVersion, str]) -> None:
        """Stops versions, each for its reason; see Pool.stop_keys."""
        for pool in self.pools.values():  # all: a key may get to another token later
            pool.stop_keys(versions)

    def resume_keys(self, versions: Iterable[KeyVersion]) -> None:
        """Lets versions sign again; see Pool.resume_keys."""
        resumed = list(versions)
        for pool in self.pools.values():
            pool.resume_keys(resumed)

    def suspend(self, suspended: Suspended, stopped: Sequence[KeyVersion]) -> None:
        """Replaces what is suspended on all tokens; see Pool.suspend."""
        for pool in self.pools.values():
            pool.suspend(suspended, stopped)

    def drop(self, versions: Iterable[KeyVersion]) -> None:
        """Destroys the session copies of versions, and stops nothing."""
        dropped = list(versions)
        for pool in self.pools.values():
            pool.drop(dropped)

    def status(self) -> list[WorkerStatus]:
        return [worker for pool in self.pools.values() for worker in pool.status()]

    def waiting(self) -> dict[str, int]:
        """Returns the number of items that wait for a worker, by owner."""
        items: Counter[str] = Counter()
        for pool in self.pools.values():
            for waiting in pool.waiting():
                items[waiting.owner] += waiting.items
        return items

    def away(self) -> dict[str, str]:
        """Returns which tokens do not serve, and why."""
        return {label: why for label, pool in self.pools.items() if (why := pool.reason)}

    def breakers_open(self) -> list[str]:
        """Returns the tokens that serve, and get only what no other token can sign.

        With one token that means nothing.
        """
        several = len(self.pools) > 1
        return [
            label
            for label, pool in self.pools.items()
            if several and pool.breaker.is_open and pool.serving
        ]

    def serving(self) -> list[str]:
        """Returns the labels of the tokens that serve."""
        return [label for label, pool in self.pools.items() if not pool.reason]

    def reasons(self) -> list[str]:
        """Returns why no token serves; empty where one does."""
        away = self.away()
        if len(away) < len(self.pools):
            return []
        return [f"token {label}: {why}" for label, why in away.items()]
