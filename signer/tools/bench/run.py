"""Measures cases: rounds of loop and appliance in turn, and the medians of their ratios."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from signer.config.models import Config
from signer.config.policy_documents import load_policy
from signer.errors import OperatorError
from signer.model import KeyName
from signer.tools.bench.c_loop import CLoop, cka_ids
from signer.tools.bench.cases import FLOOD_BATCH, FLOOD_CALLERS, Case, requests
from signer.tools.bench.load import Load, Window, measure


@dataclass(frozen=True)
class CaseRow:
    """The result of one case.

    ``rate``, ``plain`` and ``best`` are signatures a second, medians of the rounds;
    ratios are medians of the rounds' ratios. The appliance checked one signature in
    ``checks``. ``p50_ms`` and ``p99_ms`` are times of calls; in the case ``single`` the
    HSM's own time for one signature is subtracted. In the case ``flood`` the rate is that
    of the flood, and the times are those of the single items.
    """

    case: str
    format: str
    algorithm: str
    batch: int
    callers: int
    checks: int
    rate: float
    plain: float
    best: float
    ratio_plain: float
    ratio_best: float
    p50_ms: float
    p99_ms: float
    front_cpu_us_per_item: float

    def as_dict(self) -> dict[str, Any]:
        """Returns the row for JSON."""
        return {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


class _Round(NamedTuple):
    plain: float
    best: float
    rate: float
    p50: float
    p99: float
    front_cpu: float  # seconds an item


class Bench:
    """A bench of the running appliance that ``dev`` (dev.json) and ``config`` describe."""

    def __init__(self, dev: dict[str, Any], config: Config, loop: CLoop, seconds: float) -> None:
        self._dev = dev
        self._config = config
        self._policy = load_policy(config.policy)
        self._loop = loop
        self._seconds = seconds
        self._keys = {key["name"]: key for key in dev["keys"]}

    def missing(self, case: Case) -> list[KeyName]:
        """Returns the keys of a case that this appliance does not have."""
        wanted = [*case.keys, *([case.flood_key] if case.flood_key else [])]
        return [key for key in wanted if str(key) not in self._keys]

    def run(self, case: Case, rounds: int, report: Callable[[str], None]) -> CaseRow:
        """Measures one case; ``report`` is called with a line after each round."""
        terms = self._policy.terms_of(case.keys[0])
        ids = cka_ids(self._config, case.keys)
        if self.missing(case) or terms is None or len(ids) < len(case.keys):
            raise OperatorError(
                f"case {case.name} needs keys that this appliance does not have, such as"
                f" {case.keys[0]}: create them with `signer dev init DIR --facilities N`"
            )
        measured = []
        for number in range(1, rounds + 1):
            measured.append(self._round(case, ids))
            ratio = measured[-1].rate / measured[-1].plain
            report(f"{case.name}: round {number} of {rounds}: {ratio:.2f} of plain")
        return _row(case, terms.check_every, measured)

    def _round(self, case: Case, ids: Sequence[bytes]) -> _Round:
        plain = self._c_loop(case, ids, best=False)
        window, items, flood = self._appliance(case)
        best = self._c_loop(case, ids, best=True)
        rate = flood if case.flood_key else window.rate * items
        served = rate * window.seconds
        own = 1 / plain if case.name == "single" else 0.0
        return _Round(
            plain=plain,
            best=best,
            rate=rate,
            p50=window.latency(0.50) - own,
            p99=window.latency(0.99) - own,
            front_cpu=window.front_cpu_seconds / served,
        )

    def _c_loop(self, case: Case, ids: Sequence[bytes], *, best: bool) -> float:
        public_key = Path(self._keys[str(case.keys[0])]["public_key"])
        return self._loop.rate(
            "best" if best else "plain",
            case.algorithm,
            ids,
            seconds=self._seconds,
            threads=case.loop_threads,
            check=public_key if case.loop_checks else None,
        )

    def _appliance(self, case: Case) -> tuple[Window, int, float]:
        """Returns the window, items per call, and the flood's items per second."""
        with self._load(case.format, case.keys, case.batch, case.callers) as load:
            if case.flood_key is None:
                window = measure(load, self._dev["metrics"], self._seconds)
                return window, case.batch, 0.0
            with self._load(case.format, [case.flood_key], FLOOD_BATCH, FLOOD_CALLERS) as flood:
                window = measure(load, self._dev["metrics"], self._seconds)
                until = time.monotonic()
                flooded = flood.between(until - window.seconds, until)
            return window, case.batch, len(flooded) * FLOOD_BATCH / window.seconds

    def _load(self, message_format: Any, keys: Sequence[KeyName], batch: int, callers: int) -> Load:
        sources = [
            requests(message_format, keys, batch, caller, callers) for caller in range(callers)
        ]
        return Load(self._dev, sources, batch)


def _row(case: Case, check_every: int, rounds: Sequence[_Round]) -> CaseRow:
    def median(value: Callable[[_Round], float]) -> float:
        return statistics.median(value(one) for one in rounds)

    return CaseRow(
        case=case.name,
        format=case.format.value,
        algorithm=case.algorithm.value,
        batch=case.batch,
        callers=case.callers,
        checks=check_every,
        rate=median(lambda one: one.rate),
        plain=median(lambda one: one.plain),
        best=median(lambda one: one.best),
        ratio_plain=median(lambda one: one.rate / one.plain),
        ratio_best=median(lambda one: one.rate / one.best),
        p50_ms=median(lambda one: one.p50) * 1000,
        p99_ms=median(lambda one: one.p99) * 1000,
        front_cpu_us_per_item=median(lambda one: one.front_cpu) * 1e6,
    )


def misses(case: Case, row: CaseRow) -> list[str]:
    """Returns the goals of the case that the row misses, in words."""
    missed = []
    for name, goal in case.goals.items():
        value: float = getattr(row, name)
        least = name.startswith("ratio")
        if value < goal if least else value > goal:
            missed.append(f"{name} {value:.2f}, goal {'at least' if least else 'at most'} {goal:g}")
    return missed
