"""Chooses the tokens that sign a batch, and gives to another token what one of them loses.

An item is with one token at a time: it goes on only after the one before has given it up, so
that it never has two signatures.
"""

import asyncio
from collections import defaultdict
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from signer.errors import CallError, Failure, Reason
from signer.hsm.front.chunks import Signed, SignJob
from signer.hsm.front.dispatcher import LOST, TWO_WORKERS_DIED
from signer.hsm.front.pool import Admission, Pool
from signer.model import KeyVersion

T = TypeVar("T")

MOST_MOVES = 4  # of one item from token to token
LEAST_SHARE = 32  # items that are worth the work of another token
NOT_HERE = Failure(
    Reason.HSM_UNAVAILABLE,
    "this appliance does not have a token that holds the key: use another appliance",
    retry_after=60.0,
)


class Router:
    """Passes batches to the pools of tokens, which are by their labels. For the event loop."""

    def __init__(self, pools: Mapping[str, Pool]) -> None:
        self._pools = pools
        self._turn = 0  # tokens with equal work take turns

    def admit(self, job: SignJob) -> Admission:
        """Decides whether a batch may be signed now, and by which tokens; see Pool.admit."""
        pools = self._holding(job.version)
        if len(pools) < 2:
            return pools[0].admit(job) if pools else Admission(job, NOT_HERE)
        chosen = _working(pools, job.version) or _not_failed(pools, job.version)[:1] or pools[:1]
        shares: list[Admission] = []
        try:
            for pool, part in self._divided(job, chosen):
                shares.append(pool.admit(part, elsewhere=True))
        except BaseException:
            for share in shares:
                share.release()
            raise
        return shares[0] if len(shares) == 1 else Admission(job, shares=shares)

    async def sign(self, admission: Admission) -> Signed:
        """Signs an admitted batch; see Pool.sign."""
        if admission.shares:
            return _joined(await _together([self._sign(each, 0) for each in admission.shares]))
        return await self._sign(admission, 0)

    async def _sign(self, admission: Admission, moves: int) -> Signed:
        """Signs at one token, and at others what that one loses."""
        pool, job = admission.pool, admission.job
        if admission.refused is not None:
            return Signed.all_failed(job, admission.refused)
        if pool is None:  # it is empty
            return Signed([], {}, 0)
        signed = await pool.sign(admission)
        if not (signed.failures and admission.elsewhere and moves < MOST_MOVES):
            return signed
        groups: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for index, failure in sorted(signed.failures.items()):
            if _may_move(failure):
                # What may have killed a worker goes on alone, call by call.
                call = job.call_of(index) if failure is LOST else -1
                groups[admission.deaths + (failure is LOST), call].append(index)
        again = [
            self._move(admission, indexes, deaths, moves) for (deaths, _), indexes in groups.items()
        ]
        moves_made = await _together(again)
        for indexes, moved in zip(groups.values(), moves_made, strict=True):
            signed = _put(signed, indexes, moved)
        more = max((moved.attempts for moved in moves_made if moved is not None), default=0)
        return signed._replace(attempts=signed.attempts + more)

    async def _move(
        self, admission: Admission, indexes: Sequence[int], deaths: int, moves: int
    ) -> Signed | None:
        """Signs these items at another token; None if there is none.

        They are admitted already: where the other one is busy, they wait there.
        """
        job, at = admission.job, admission.pool
        pool = self._another(job.version, at)
        if pool is None:
            return None
        part = job.some(indexes)
        moved = Admission(part, pool=pool, elsewhere=True, deaths=deaths)
        try:
            return await self._sign(moved, moves + 1)
        except CallError as error:
            if error.reason is not Reason.KEY_VERSION_NOT_ACTIVE:
                raise
            return Signed.all_failed(part, Failure(error.reason, str(error)))

    def _holding(self, version: KeyVersion) -> list[Pool]:
        """Returns the pools of the tokens that hold a key and are here."""
        pools = self._pools
        if not version.other_placements and version.wrapped is None:  # nearly always
            pool = pools.get(version.token)
            return [] if pool is None else [pool]
        return [pools[token] for token, _ in version.placements if token in pools]

    def _another(self, version: KeyVersion, at: Pool | None) -> Pool | None:
        """Returns where to sign what a token has lost; itself again if no other one works."""
        pools = self._holding(version)
        others, same = [p for p in pools if p is not at], [p for p in pools if p is at]
        for some in (_working(others, version), _working(same, version)):
            if some:
                return min(some, key=Pool.ahead)
        return next(iter([*_not_failed(others, version), *_not_failed(same, version)]), None)

    def _divided(self, job: SignJob, pools: Sequence[Pool]) -> Iterator[tuple[Pool, SignJob]]:
        """Yields what each token is to sign, so that all end at about the same time."""
        self._turn += 1
        first = self._turn % len(pools)
        in_turn = sorted([*pools[first:], *pools[:first]], key=Pool.ahead)
        count = len(job.inputs)
        if len(pools) == 1 or count < 2 * LEAST_SHARE:
            yield in_turn[0], job
            return
        rates = [pool.rate(job.version) for pool in in_turn]
        start = 0
        counts = divide(count, [pool.ahead() for pool in in_turn], rates)
        for pool, items in zip(in_turn, counts, strict=True):
            if items == count:
                yield pool, job
            elif items:
                yield pool, job.some(range(start, start + items))
            start += items


def divide(count: int, ahead: Sequence[float], rates: Sequence[float]) -> list[int]:
    """Returns how many of ``count`` items each token gets; the least busy one is first.

    ``ahead`` are the seconds of work that wait at each, in ascending order, ``rates`` the items
    a second that each signs. No share is less than LEAST_SHARE.
    """
    shares = [count, *([0] * (len(ahead) - 1))]
    for tokens in range(2, len(ahead) + 1):
        rate = sum(rates[:tokens])
        end = (count + sum(a * r for a, r in zip(ahead[:tokens], rates, strict=False))) / rate
        more = [int((end - a) * r) for a, r in zip(ahead[:tokens], rates, strict=False)]
        if min(more) < LEAST_SHARE:
            break
        more[0] += count - sum(more)
        shares[:tokens] = more
    return shares


def _working(pools: Sequence[Pool], version: KeyVersion) -> list[Pool]:
    """Returns the pools that can sign with a version at once."""
    return [p for p in pools if p.serving and not p.breaker.is_open and p.can_sign(version)]


def _not_failed(pools: Sequence[Pool], version: KeyVersion) -> list[Pool]:
    """Returns the pools that can sign with a version at once or once a worker has started."""
    return [pool for pool in pools if pool.can_sign(version)]


def _may_move(failure: Failure) -> bool:
    return failure.reason is Reason.HSM_UNAVAILABLE and failure is not TWO_WORKERS_DIED


async def _together(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Waits for all; where one fails the others are cancelled."""
    if len(coroutines) == 1:
        return [await coroutines[0]]
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _joined(shares: Sequence[Signed]) -> Signed:
    """Returns the shares of a batch as one, in their order."""
    signatures: list[bytes] = []
    failures: dict[int, Failure] = {}
    for share in shares:
        start = len(signatures)
        signatures += share.signatures
        failures |= {start + index: failure for index, failure in share.failures.items()}
    return Signed(signatures, failures, max(share.attempts for share in shares))


def _put(signed: Signed, indexes: Sequence[int], moved: Signed | None) -> Signed:
    """Returns a batch with what became of these items at another token."""
    if moved is None:
        return signed
    signatures, failures = list(signed.signatures), dict(signed.failures)
    for at, index in enumerate(indexes):
        signatures[index] = moved.signatures[at]
        failures.pop(index)
        if (failure := moved.failures.get(at)) is not None:
            failures[index] = failure
    return Signed(signatures, failures, signed.attempts)
