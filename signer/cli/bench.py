"""``signer bench``: the appliance beside a C loop, in one table."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from signer.cli.bench_table import table
from signer.cli.options import FILE, json_option
from signer.cli.output import print_json, say
from signer.client._errors import SignerClientError
from signer.config.models import load_config
from signer.config.policy_documents import load_policy
from signer.errors import OperatorError
from signer.model import Storage
from signer.policy.rules import Policy
from signer.text import count
from signer.tools.bench.c_loop import CLoop
from signer.tools.bench.cases import CASES, COMPARISONS, Case, facilities_for
from signer.tools.bench.contenders import Checkout, Contender, started
from signer.tools.bench.figures import CaseRow, misses
from signer.tools.bench.load import LoadTool, gauge
from signer.tools.bench.run import Bench, Rival
from signer.tools.dev import slow_file
from signer.tools.dev.appliance import DevAppliance, connect


@click.command()
@click.option(
    "--dir",
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="A development appliance; created and started for the bench if it does not exist.",
)
@click.option("--config", "config_file", type=FILE, help="The same, by its signer.yaml.")
@click.option(
    "--against",
    metavar="CHECKOUT",
    type=click.Path(path_type=Path),
    help="Another checkout of this project, with its own .venv, to compare with.",
)
@click.option(
    "--loop",
    "program",
    metavar="FILE",
    default=Path("build/loop"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="The C loop; `make bench` compiles it.",
)
@click.option(
    "--load",
    metavar="FILE",
    default=Path("build/load"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="The load client in Go; if it is missing, one in Python is used.",
)
@click.option(
    "--latency",
    metavar="MS",
    type=click.FloatRange(0, 10_000),
    help="Every call of the token's module takes so many milliseconds longer, also in the loops.",
)
@click.option(
    "--shim",
    metavar="FILE",
    default=Path("build/shim.so"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="The library for --latency; `make shim` compiles it.",
)
@click.option("--rounds", type=click.IntRange(1, 1000), default=12, show_default=True)
@click.option(
    "--slice",
    "seconds",
    metavar="SECONDS",
    type=click.FloatRange(0.1, 600),
    default=0.5,
    show_default=True,
    help="How long each measures in a round; some cases measure longer, in fewer rounds.",
)
@click.option(
    "--case",
    "names",
    metavar="NAME",
    multiple=True,
    help="Only this case; may be repeated. By default all for which DIR has the keys.",
)
@json_option
def bench(
    *,
    directory: Path | None,
    config_file: Path | None,
    against: Path | None,
    program: Path,
    load: Path,
    latency: float | None,
    shim: Path,
    rounds: int,
    seconds: float,
    names: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measures a development appliance side by side with a C loop on its token.

    Each round runs the plain loop (two threads, token objects, as it is usually
    written), the appliance, and the best loop (session copies) for a moment each,
    so that other load on the machine affects all of them. Figures are medians of the
    rounds. If the plain loop varies by more than 25 %, nothing is judged. The
    exit code is 1 if a goal is missed or a case cannot be measured.

    \b
    The table:
      signer bench --dir build/bench

    \b
    One case, quickly, for a program:
      signer bench --dir build/bench --case single-16 --rounds 6 --json

    \b
    What a change costs or gains: beside the appliance of another checkout,
    started from there, which alternates with ours:
      git worktree add ../before main && make -C ../before setup
      signer bench --dir build/bench --against ../before --case single-16

    \b
    As with an HSM in the network, a millisecond away:
      signer bench --dir build/bench --latency 1 --case overload --case message
    """
    directory = _folder(directory, config_file)
    if latency is not None and against is not None:
        raise click.UsageError("--latency is for our appliance: leave --against out")
    wanted, tool = _choose(names), _load_tool(load)
    other = None if against is None else Checkout(against)
    slow = [] if latency is None else ["--latency", str(latency), "--shim", str(shim)]
    with ExitStack() as stack:
        ours = stack.enter_context(_ours(directory, slow))
        config = load_config(slow_file(directory) if slow else Path(ours.dev["config"]))
        cases = wanted if names else _possible(ours, load_policy(config.policy), wanted)
        rival = stack.enter_context(_rival(other, directory, cases)) if other else None
        loop = CLoop(program, config)
        runner = Bench(ours, config, loop, tool, rounds=rounds, seconds=seconds, rival=rival)
        rows, failed = _measure(runner, cases, as_json=as_json)
        _say_memory(ours)
    if not as_json:
        say(table(rows))
    _check_goals(rows, failed)


def _say(text: str) -> None:
    say(text, err=True)


def _folder(directory: Path | None, config_file: Path | None) -> Path:
    """Returns the appliance's folder; raises UsageError if neither option names it."""
    if config_file is not None:
        return config_file.parent
    if directory is None:
        raise click.UsageError("give --dir DIR, or --config DIR/signer.yaml")
    return directory


def _choose(names: tuple[str, ...]) -> list[Case]:
    by_name = {case.name: case for case in CASES}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise click.UsageError(f"unknown case {unknown[0]}; cases: {', '.join(by_name)}")
    return [by_name[name] for name in names] if names else list(CASES)


def _load_tool(program: Path) -> LoadTool:
    if program.is_file():
        return LoadTool(program.resolve())
    _say(
        f"{program} is missing: the load client in Python is used, which needs more of the CPU"
        " that it shares with the appliance; if Go is installed, `make bench` builds the other"
    )
    return LoadTool(None)


def _measure(
    runner: Bench, cases: list[Case], *, as_json: bool
) -> tuple[list[tuple[Case, CaseRow]], list[str]]:
    """Returns the rows, and for each case without a row the reason."""
    rows, failed = [], []
    for case in cases:
        try:
            row = runner.run(case, _say)
        except OperatorError as error:
            _say(f"{case.name}: {error}")
            failed.append(f"{case.name}: not measured: {error}")
            continue
        rows.append((case, row))
        if as_json:
            print_json(row.as_dict(), indent=None)
    return rows, failed


def _possible(ours: Contender, policy: Policy, cases: list[Case]) -> list[Case]:
    """Returns the cases for whose keys the appliance has facilities; reports the others."""
    possible = []
    for case in cases:
        missing, terms = ours.missing(case.all_keys), policy.terms_of(case.keys[0])
        if missing:
            _say(f"{case.name}: left out, {count(len(missing), 'key is', 'keys are')} missing")
        elif case.wrapped and (terms is None or terms.storage != Storage.WRAPPED):
            _say(f"{case.name}: left out, the keys are not wrapped (see `signer dev --storage`)")
        else:
            possible.append(case)
    return possible


@contextmanager
def _ours(directory: Path, arguments: Sequence[str] = ()) -> Iterator[Contender]:
    """Yields the appliance in ``directory``, started for the bench if it does not serve.

    Raises OperatorError if it serves and was to be started with ``arguments``.
    """
    appliance = DevAppliance(directory, arguments)
    if _serves(appliance.dir):
        if arguments:
            raise OperatorError(f"the appliance in {directory} serves: stop it to use --latency")
        yield Contender(appliance.dev)
        return
    with started(appliance, _say) as contender:
        yield contender


@contextmanager
def _rival(other: Checkout, directory: Path, cases: list[Case]) -> Iterator[Rival]:
    """Yields an appliance of another checkout, started beside ours."""
    appliance = other.new_appliance(directory, facilities_for(cases))
    with started(appliance, _say) as theirs:
        wanted = {flood.client for case in cases for flood in case.floods}
        for client in sorted(wanted - set(theirs.dev["clients"])):
            _say(f"their appliance has no {client}: its flood has the principal of A")
        yield Rival(other.name, theirs)


def _serves(directory: Path) -> bool:
    described = directory / "dev.json"
    if not described.exists():
        return False
    with connect(json.loads(described.read_text()), "operator") as client:
        try:
            return client.health(timeout=5) == "SERVING"
        except SignerClientError:
            return False


def _say_memory(ours: Contender) -> None:
    resident = gauge(ours.dev["metrics"], "process_resident_memory_bytes")
    _say(f"memory of the front process: {resident / 2**20:.0f} MiB (goal: at most 250)")


def _check_goals(rows: list[tuple[Case, CaseRow]], failed: list[str]) -> None:
    """Raises OperatorError if a goal is missed, or a case has ``failed``."""
    missed = [f"{row.case}: {text}" for case, row in rows for text in misses(case, row)]
    missed += [*_compare([row for _, row in rows]), *failed]
    if missed:
        raise OperatorError("goals missed:\n" + "\n".join(f"  {text}" for text in missed))


def _compare(rows: list[CaseRow]) -> list[str]:
    """Compares pairs of cases of this run, each by its own plain loop; returns what is missed."""
    found, missed = {row.case: row for row in rows}, []
    for name, base, goal in COMPARISONS:
        if name not in found or base not in found:
            continue
        times = found[name].ratio_plain / found[base].ratio_plain
        text = f"{name} has {times:.2f} times the ratio of {base} (goal: at least {goal:g})"
        judged = found[name].judged and found[base].judged
        _say(text if judged else f"{text}; not judged")
        if judged and times < goal:
            missed.append(text)
    return missed
