"""Measures cases: slices of the loops and the appliances by turns, round by round."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from signer.config.models import Config
from signer.config.policy_documents import load_policy
from signer.errors import OperatorError
from signer.text import count
from signer.tools.bench.c_loop import CLoop, Mode, RunningLoop, cka_ids
from signer.tools.bench.cases import Case
from signer.tools.bench.contenders import Contender, LoadedContender
from signer.tools.bench.figures import CaseRow, Round, Slice, compared, row_of
from signer.tools.bench.load import LoadTool

T = TypeVar("T")

_FEWEST_ROUNDS = 3
_MODES: tuple[Mode, ...] = ("plain", "best")


def rounds_of(case: Case, rounds: int) -> int:
    """Returns how many rounds a case has: fewer where its slices are longer."""
    return max(min(rounds, _FEWEST_ROUNDS), rounds // case.slices)


class Rival(NamedTuple):
    """The other checkout's appliance and its name."""

    name: str
    contender: Contender


class Bench:
    """A bench of the appliance ``ours``, whose configuration is ``config``.

    A case has ``rounds`` rounds, with slices of ``seconds``; a case with longer slices has
    fewer.
    """

    def __init__(
        self,
        ours: Contender,
        config: Config,
        loop: CLoop,
        tool: LoadTool,
        *,
        rounds: int,
        seconds: float,
        rival: Rival | None = None,
    ) -> None:
        self._ours = ours
        self._config = config
        self._policy = load_policy(config.policy)
        self._loop = loop
        self._tool = tool
        self._rounds = rounds
        self._seconds = seconds
        self._rival = rival

    def run(self, case: Case, report: Callable[[str], None]) -> CaseRow:
        """Measures one case; ``report`` is called with a line of text. Raises OperatorError."""
        terms = self._policy.terms_of(case.keys[0])
        ids = cka_ids(self._config, case.loop_keys)
        if self._ours.missing(case.all_keys) or terms is None or len(ids) < len(case.loop_keys):
            raise OperatorError(
                f"case {case.name} needs keys that this appliance does not have, such as"
                f" {case.keys[0]}: create them with `signer dev init DIR --facilities N`"
            )
        rounds, problem = self._measure(case, ids)
        row = row_of(
            case,
            rounds,
            checks=terms.check_every,
            client=self._tool.name(case),
            against=self._against(rounds, problem),
        )
        against = row.against or {}
        beside = f", {against['ratio_rate']:.2f} of theirs" if "ratio_rate" in against else ""
        report(
            f"{case.name}: {count(len(rounds), 'round')}, {row.rate:,.0f}/s, {row.ratio_plain:.2f}"
            f" of plain{beside}"
        )
        return row

    def _against(self, rounds: Sequence[Round], problem: str | None) -> Mapping[str, Any] | None:
        if self._rival is None:
            return None
        name = self._rival.name
        if problem is not None:
            return {"checkout": name, "error": problem}
        try:
            return compared(name, rounds)
        except OperatorError as error:
            return {"checkout": name, "error": str(error)}

    def _measure(self, case: Case, ids: Sequence[bytes]) -> tuple[list[Round], str | None]:
        """Returns the rounds, and why the other checkout's appliance is not in them."""
        with ExitStack() as stack:
            loops = {mode: stack.enter_context(self._running(mode, case, ids)) for mode in _MODES}
            ours = stack.enter_context(self._loaded(case, self._ours))
            theirs = _Optional(lambda: None)
            if self._rival is not None:
                contender = self._rival.contender
                theirs = _Optional(lambda: stack.enter_context(self._loaded(case, contender)))
            ours.use_keys()
            theirs.use_keys()
            rounds = []
            for number in range(rounds_of(case, self._rounds)):
                turns: dict[str, Callable[[], Any]] = {
                    "plain": loops["plain"].rate,
                    "ours": ours.slice,
                    "theirs": theirs.slice,
                    "best": loops["best"].rate,
                }
                # Every second round backwards, so that none is always first.
                names = list(turns)[:: -1 if number % 2 else 1]
                rounds.append(Round(**{name: turns[name]() for name in names}))
        return rounds, theirs.problem

    def _running(
        self, mode: Mode, case: Case, ids: Sequence[bytes]
    ) -> AbstractContextManager[RunningLoop]:
        public_key = Path(self._ours.public_key(str(case.loop_keys[0])))
        return self._loop.running(
            mode,
            case.algorithm,
            ids,
            seconds=self._seconds,
            threads=case.loop_threads,
            check=public_key if case.loop_checks else None,
        )

    def _loaded(self, case: Case, contender: Contender) -> AbstractContextManager[LoadedContender]:
        return LoadedContender.under(case, contender, self._tool, self._seconds * case.slices)


class _Optional:
    """The other checkout's appliance, which is left out once something of it has failed."""

    def __init__(self, start: Callable[[], LoadedContender | None]) -> None:
        self.problem: str | None = None
        self._loaded: LoadedContender | None = None
        try:
            self._loaded = start()
        except OperatorError as error:
            self.problem = str(error)

    def use_keys(self) -> None:
        """Signs before the first slice, if there is something to measure."""
        self._attempt(lambda loaded: loaded.use_keys())

    def slice(self) -> Slice | None:
        """Measures a slice; None if there is nothing to measure."""
        return self._attempt(lambda loaded: loaded.slice())

    def _attempt(self, act: Callable[[LoadedContender], T]) -> T | None:
        if self._loaded is None or self.problem is not None:
            return None
        try:
            return act(self._loaded)
        except OperatorError as error:
            self.problem = str(error)
            return None
