"""``signer bench``: the appliance beside a C loop, in one table."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from signer.cli.options import FILE, json_option
from signer.client import SignerClientError
from signer.config.models import load_config
from signer.errors import OperatorError
from signer.text import count
from signer.tools.bench.c_loop import CLoop
from signer.tools.bench.cases import CASES, Case
from signer.tools.bench.load import gauge
from signer.tools.bench.run import Bench, CaseRow, misses
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
    "--loop",
    "program",
    metavar="FILE",
    default=Path("build/loop"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="The C loop; `make bench` compiles it.",
)
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option(
    "--seconds",
    type=click.FloatRange(0.2, 600),
    default=4,
    show_default=True,
    help="Length of each measurement; a round has three.",
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
    program: Path,
    rounds: int,
    seconds: float,
    names: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measures a development appliance side by side with a C loop on its token.

    Each round runs the plain loop (two threads, token objects, as it is usually
    written), the appliance, and the best loop (session copies) in turn; ratios
    are the medians of the rounds. The exit code is 1 if a goal is missed.

    \b
    The short table:
      signer bench --dir build/bench

    \b
    One case, quickly, for a program:
      signer bench --dir build/bench --case jws --rounds 3 --seconds 2 --json

    \b
    With 10,000 keys as well:
      signer dev init build/bench-keys --facilities 10000
      signer bench --dir build/bench-keys --case keys-10 --case keys-10000
    """
    if config_file is not None:
        directory = config_file.parent
    if directory is None:
        raise click.UsageError("give --dir DIR, or --config DIR/signer.yaml")
    wanted = _choose(names)
    # As in the daemon: Python's 5 ms would lengthen the latencies of two busy load threads.
    sys.setswitchinterval(0.0005)
    with _appliance(directory) as dev:
        config = load_config(Path(dev["config"]))
        runner = Bench(dev, config, CLoop(program, config), seconds)
        cases = wanted if names else _possible(runner, wanted)
        rows = []
        for case in cases:
            rows.append(runner.run(case, rounds, _say))
            if as_json:
                click.echo(json.dumps(rows[-1].as_dict()))
        resident = gauge(dev["metrics"], "process_resident_memory_bytes")
        _say(f"memory of the front process: {resident / 2**20:.0f} MiB (goal: at most 250)")
    if not as_json:
        click.echo(_table(cases, rows))
    missed = [
        f"{case.name}: {text}"
        for case, row in zip(cases, rows, strict=True)
        for text in misses(case, row)
    ]
    missed += _compare_keys(rows)
    if missed:
        raise OperatorError("goals missed:\n" + "\n".join(f"  {text}" for text in missed))


def _say(text: str) -> None:
    click.echo(text, err=True)


def _choose(names: tuple[str, ...]) -> list[Case]:
    by_name = {case.name: case for case in CASES}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise click.UsageError(f"unknown case {unknown[0]}; cases: {', '.join(by_name)}")
    return [by_name[name] for name in names] if names else list(CASES)


def _possible(runner: Bench, cases: list[Case]) -> list[Case]:
    """Returns the cases for whose keys the appliance has facilities; reports the others."""
    possible = []
    for case in cases:
        missing = runner.missing(case)
        if missing:
            _say(f"{case.name}: left out, {count(len(missing), 'key is', 'keys are')} missing")
        else:
            possible.append(case)
    return possible


@contextmanager
def _appliance(directory: Path) -> Iterator[dict[str, Any]]:
    """Yields dev.json of the appliance in ``directory``, started for the bench if needed."""
    appliance = DevAppliance(directory)
    if _serves(appliance.dir):
        yield appliance.dev
        return
    seconds = appliance.start(timeout=1800)  # it may have thousands of keys to create
    _say(f"the appliance was ready after {seconds:.1f} s")
    try:
        yield appliance.dev
    finally:
        appliance.stop()


def _serves(directory: Path) -> bool:
    described = directory / "dev.json"
    if not described.exists():
        return False
    with connect(json.loads(described.read_text()), "operator") as client:
        try:
            return client.health(timeout=5) == "SERVING"
        except SignerClientError:
            return False


def _compare_keys(rows: list[CaseRow]) -> list[str]:
    """Compares 10,000 keys with 10, each by its own plain loop: at least 0.9 of the ratio."""
    ratios = {row.case: row.ratio_plain for row in rows}
    if not {"keys-10", "keys-10000"} <= set(ratios):
        return []
    kept = ratios["keys-10000"] / ratios["keys-10"]
    _say(f"10,000 keys keep {kept:.2f} of the ratio of 10 keys (goal: at least 0.9)")
    return [f"keys-10000: {kept:.2f} of the ratio of keys-10"] if kept < 0.9 else []


def _table(cases: list[Case], rows: list[CaseRow]) -> str:
    head = (
        f"{'case':<12} {'rate/s':>8} {'plain/s':>8} {'best/s':>8} {'/plain':>7} {'/best':>7}"
        f" {'p50 ms':>8} {'p99 ms':>8} {'front µs':>8} {'checks':>6}  what"
    )
    lines = [head, "-" * len(head)]
    for case, row in zip(cases, rows, strict=True):
        mark = "  MISSED" if misses(case, row) else ""
        lines.append(
            f"{row.case:<12} {row.rate:>8,.0f} {row.plain:>8,.0f} {row.best:>8,.0f}"
            f" {row.ratio_plain:>7.2f} {row.ratio_best:>7.2f} {row.p50_ms:>8.2f}"
            f" {row.p99_ms:>8.2f} {row.front_cpu_us_per_item:>8.2f} {f'1/{row.checks}':>6}"
            f"  {case.title}{mark}"
        )
    return "\n".join(lines)
