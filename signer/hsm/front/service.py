"""All tokens together: signing, and what is stopped on them."""

from collections import Counter, defaultdict
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any

from signer.hsm.front.chunks import Signed, SignJob
from signer.hsm.front.pool import Admission, Pool
from signer.hsm.front.slot import WorkerStatus
from signer.hsm.spec import FailureKind
from signer.model import KeyVersion, Suspended


class Hsm:
    """Passes each call to the pool of the key's token, ``pools`` by its label.

    ``admit`` and ``sign`` are for the event loop, the other methods for any thread; see Pool.
    """

    def __init__(self, pools: Mapping[str, Pool]) -> None:
        self.pools = pools

    def start(self) -> None:
        """Starts all workers; does not wait for them."""
        for pool in self.pools.values():
            pool.start()

    def wait_for_outcomes(self, seconds: float) -> dict[str, tuple[FailureKind | None, str]]:
        """Waits until each token serves or has failed; returns failures and their texts."""
        return {label: pool.wait_for_outcome(seconds) for label, pool in self.pools.items()}

    def close(self) -> None:
        for pool in self.pools.values():
            pool.close()

    def admit(self, job: SignJob) -> Admission:
        """Decides whether a batch may be signed now on the token of its key; see Pool.admit."""
        # The daemon refuses to serve a registry that names another token.
        return self.pools[job.version.token].admit(job)

    def sign(self, admission: Admission) -> Coroutine[Any, Any, Signed]:
        """Returns the coroutine that signs an admitted batch; see Pool.sign."""
        return self.pools[admission.job.version.token].sign(admission)

    async def sign_now(self, job: SignJob) -> Signed:
        """Admits and signs a job that needs no intent of its own: a checkpoint of the log."""
        with self.admit(job) as admission:
            return await self.sign(admission)

    def refresh(self) -> None:
        for pool in self.pools.values():
            pool.refresh()

    def stop_keys(self, versions: Mapping[KeyVersion, str]) -> None:
        """Stops versions, each for its reason; see Pool.stop_keys."""
        for token, some in _by_token(versions).items():
            self.pools[token].stop_keys({version: versions[version] for version in some})

    def resume_keys(self, versions: Iterable[KeyVersion]) -> None:
        """Lets versions sign again; see Pool.resume_keys."""
        for token, some in _by_token(versions).items():
            self.pools[token].resume_keys(some)

    def suspend(self, suspended: Suspended, stopped: Sequence[KeyVersion]) -> None:
        """Replaces what is suspended on all tokens; see Pool.suspend."""
        newly = _by_token(stopped)
        for label, pool in self.pools.items():
            pool.suspend(suspended, newly.get(label, ()))

    def drop(self, versions: Iterable[KeyVersion]) -> None:
        """Destroys the session copies of versions, and stops nothing."""
        for token, some in _by_token(versions).items():
            self.pools[token].drop(some)

    def status(self) -> list[WorkerStatus]:
        return [worker for pool in self.pools.values() for worker in pool.status()]

    def waiting(self) -> dict[str, int]:
        """Returns the number of items that wait for a worker, by owner."""
        items: Counter[str] = Counter()
        for pool in self.pools.values():
            for waiting in pool.waiting():
                items[waiting.owner] += waiting.items
        return items

    def reasons(self) -> list[str]:
        """Returns why tokens do not serve; empty where all do."""
        return [
            f"token {label}: {pool.reason}" for label, pool in self.pools.items() if pool.reason
        ]


def _by_token(versions: Iterable[KeyVersion]) -> Mapping[str, list[KeyVersion]]:
    tokens: defaultdict[str, list[KeyVersion]] = defaultdict(list)
    for version in versions:
        tokens[version.token].append(version)
    return tokens
