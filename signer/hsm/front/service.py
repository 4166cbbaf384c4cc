"""All tokens together: what the engine asks for signatures."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from signer.hsm.front.observer import WorkerStatus
from signer.hsm.front.pool import Admission, Pool
from signer.hsm.spec import FailureKind
from signer.model import KeyVersion, Signed, SignJob, Suspended


class Hsm:
    """Finds the pool of a key's token."""

    def __init__(self, pools: Mapping[str, Pool]) -> None:
        self._pools = dict(pools)

    @property
    def pools(self) -> Mapping[str, Pool]:
        """The pools by the label of their token."""
        return self._pools

    def start(self) -> None:
        """Starts all workers; does not wait for them."""
        for pool in self._pools.values():
            pool.start()

    def wait_for_outcomes(self, seconds: float) -> dict[str, tuple[FailureKind | None, str]]:
        """Waits until each token serves or has failed; returns failures and their texts."""
        return {label: pool.wait_for_outcome(seconds) for label, pool in self._pools.items()}

    def close(self) -> None:
        """Ends all workers."""
        for pool in self._pools.values():
            pool.close()

    def admit(self, job: SignJob) -> Admission:
        """Decides whether a batch may be signed now on the token of its key; see Pool.admit."""
        return self._pool(job.version).admit(job)

    def sign(self, admission: Admission) -> Signed:
        """Signs an admitted batch; see Pool.sign."""
        return self._pool(admission.job.version).sign(admission)

    def refresh(self) -> None:
        """Has all workers look for new keys."""
        for pool in self._pools.values():
            pool.refresh()

    def stop_keys(self, versions: Mapping[KeyVersion, str]) -> None:
        """Stops versions on their tokens; see Pool.stop_keys."""
        for token, some in _by_token(versions).items():
            self._pools[token].stop_keys({version: versions[version] for version in some})

    def resume_keys(self, versions: Iterable[KeyVersion]) -> None:
        """Lets versions sign again on their tokens; see Pool.resume_keys."""
        for token, some in _by_token(versions).items():
            self._pools[token].resume_keys(some)

    def suspend(self, suspended: Suspended, stopped: Sequence[KeyVersion]) -> None:
        """Replaces what is suspended on all tokens; see Pool.suspend."""
        newly = _by_token(stopped)
        for label, pool in self._pools.items():
            pool.suspend(suspended, newly.get(label, ()))

    def drop(self, versions: Iterable[KeyVersion]) -> None:
        """Has workers destroy their session copies of versions, and stops nothing."""
        for token, some in _by_token(versions).items():
            self._pools[token].drop(some)

    def status(self) -> list[WorkerStatus]:
        """All workers of all tokens."""
        return [worker for pool in self._pools.values() for worker in pool.status()]

    def waiting(self) -> dict[str, int]:
        """Items that wait for a worker, by owner."""
        items: Counter[str] = Counter()
        for pool in self._pools.values():
            for waiting in pool.waiting():
                items[waiting.owner] += waiting.items
        return items

    def reasons(self) -> list[str]:
        """Why tokens do not serve; empty where all do."""
        return [
            f"token {label}: {pool.reason}" for label, pool in self._pools.items() if pool.reason
        ]

    def _pool(self, version: KeyVersion) -> Pool:
        # The daemon takes no registry into service that names another token.
        return self._pools[version.token]


def _by_token(versions: Iterable[KeyVersion]) -> Mapping[str, list[KeyVersion]]:
    tokens: defaultdict[str, list[KeyVersion]] = defaultdict(list)
    for version in versions:
        tokens[version.token].append(version)
    return tokens
