"""The appliances that a bench measures: ours, and that of another checkout."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

from signer.errors import OperatorError
from signer.model import KeyName
from signer.tools.bench.cases import Case
from signer.tools.bench.disturbances import Disturbances
from signer.tools.bench.figures import Slice
from signer.tools.bench.load import LoadTool, RunningLoad, Turn, floods_of, gauge, traffic_of
from signer.tools.dev.appliance import DevAppliance

_CPU_SECONDS = "process_cpu_seconds_total"  # of the front process
_CPU_CLOCK = 2  # CPUCLOCK_SCHED of the kernel's posix-timers.h: the CPU time of a process


class Contender(NamedTuple):
    """A serving appliance: its dev.json, and its front process where we started it."""

    dev: Mapping[str, Any]
    pid: int | None = None

    def front_cpu(self) -> float:
        """Returns the CPU seconds of the front process so far.

        From the kernel's clock of the process, which costs the appliance nothing; of an
        appliance that another program started, from its metrics, which it has to render.
        """
        if self.pid is None:
            return gauge(self.dev["metrics"], _CPU_SECONDS)
        return time.clock_gettime(~self.pid << 3 | _CPU_CLOCK)

    def missing(self, keys: Sequence[KeyName]) -> list[KeyName]:
        """Returns those of the keys that this appliance does not have."""
        here = {key["name"] for key in self.dev["keys"]}
        return [key for key in keys if str(key) not in here]

    def public_key(self, name: str) -> str:
        """Returns the PEM file of a key. Raises OperatorError if the key does not exist."""
        for key in self.dev["keys"]:
            if key["name"] == name:
                return str(key["public_key"])
        raise OperatorError(f"it has no key {name}")


class LoadedContender:
    """A contender with the load clients of one case, which wait between slices."""

    def __init__(
        self,
        case: Case,
        contender: Contender,
        measured: RunningLoad,
        floods: Sequence[RunningLoad],
        disturbances: Disturbances | None,
    ) -> None:
        self._case = case
        self._contender = contender
        self._measured = measured
        self._floods = floods
        self._disturbances = disturbances

    @classmethod
    @contextmanager
    def under(
        cls, case: Case, contender: Contender, tool: LoadTool, seconds: float
    ) -> Iterator[Self]:
        """Starts the load clients of a case; a slice takes ``seconds`` and its warm-up."""
        traffic = traffic_of(case, contender.public_key(str(case.keys[0])))
        with ExitStack() as stack:

            def client(sent: Any) -> RunningLoad:
                running = tool.running(contender.dev, sent, seconds=seconds, warm_up=case.warm_up)
                return stack.enter_context(running)

            measured = client(traffic)
            floods = [client(flood) for flood in floods_of(case, contender.dev)]
            disturbing = Disturbances(contender.dev) if case.disturbed else None
            if disturbing is not None:
                stack.enter_context(disturbing)
            yield cls(case, contender, measured, floods, disturbing)

    def use_keys(self) -> None:
        """Signs until each key has been used as often as the case wants it before a slice."""
        left = self._case.uses * len(self._case.keys)
        while left > 0:
            self._measured.begin()
            left -= max(1, self._measured.finish().items)

    def slice(self) -> Slice:
        """Measures one slice."""
        capacity = self._capacity()
        before = self._contender.front_cpu()
        if self._disturbances is not None:
            self._disturbances.resume()
        for flood in self._floods:
            flood.begin()
        measured = self._turn(capacity)
        floods = [flood.finish() for flood in self._floods]
        if self._disturbances is not None:
            self._disturbances.pause()
        return slice_of(measured, floods, self._contender.front_cpu() - before, capacity)

    def _capacity(self) -> float:
        """Returns the items a second that callers get who wait for answers, before an overload."""
        if self._case.overload is None:
            return 0.0
        self._measured.begin(0)
        return self._measured.finish().rate

    def _turn(self, capacity: float) -> Turn:
        overload = self._case.overload
        pace = overload.times * capacity / self._case.batch if overload else None
        self._measured.begin(pace)
        return self._measured.finish()


def slice_of(
    measured: Turn, floods: Sequence[Turn], front_cpu: float, capacity: float = 0.0
) -> Slice:
    """Returns a slice; beside floods, its rate is theirs and its latencies are not."""
    turns = [measured, *floods]
    return Slice(
        rate=sum(turn.rate for turn in floods) if floods else measured.rate,
        items=sum(turn.items for turn in turns),
        latencies=measured.latencies,
        front_cpu=front_cpu,
        client_cpu=sum(turn.cpu for turn in turns),
        failures=measured.failures,
        capacity=capacity,
        refused=measured.refused,
    )


class Checkout:
    """Another checkout of this project, with the virtual environment in it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory.resolve()
        self._python = self._directory / ".venv/bin/python"
        if not (self._directory / "signer/__main__.py").is_file():
            raise OperatorError(f"--against {directory}: it is not a checkout of this project")
        if not self._python.exists():
            raise OperatorError(
                f"--against {directory}: it has no .venv/bin/python: run `make setup` there"
            )

    @property
    def name(self) -> str:
        """Its folder's name."""
        return self._directory.name

    def new_appliance(self, beside: Path, facilities: int) -> DevAppliance:
        """Returns a new development appliance of it, not started yet.

        Its folder is that of ours with ``-against`` at the end, so on the same disk; what an
        earlier run left there is deleted.
        """
        directory = beside.resolve().with_name(f"{beside.resolve().name}-against")
        if directory.exists():
            if not (directory / "dev.json").exists() and any(directory.iterdir()):
                raise OperatorError(f"{directory} contains other files: delete it first")
            shutil.rmtree(directory)
        # Its own code, even if its .venv is shared with, or we were started from, another one.
        environment = {"PYTHONPATH": str(self._directory), "PYTHONSAFEPATH": "1"}
        arguments = ("--facilities", str(facilities)) if facilities else ()
        return DevAppliance(directory, arguments, environment, self._python)


@contextmanager
def started(appliance: DevAppliance, say: Callable[[str], None]) -> Iterator[Contender]:
    """Starts an appliance, which may have thousands of keys to create, and stops it."""
    seconds = appliance.start(timeout=1800)
    say(f"the appliance in {appliance.dir} was ready after {seconds:.1f} s")
    try:
        process = appliance.process
        yield Contender(appliance.dev, process.pid if process is not None else None)
    finally:
        appliance.stop()
