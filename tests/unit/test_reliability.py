"""docs/reliability.md counts what the tests inject, and names tests that exist."""

import re
from collections.abc import Callable, Sequence
from datetime import date
from importlib import import_module
from itertools import product, takewhile
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import is_hypothesis_test

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "reliability.md").read_text()
TIMES = "times"
"""A parameter of this name says how often a test repeats what it injects."""


class Row(NamedTuple):
    """One row of the tables: a test, and how often it injects what."""

    test: str
    in_test: int
    in_torture: int


def rows() -> list[Row]:
    found = re.findall(r"(?m)^\|[^|]+\| `(tests/[^`]+)` \| ([\d,]+|-) \| ([\d,]+|-) \|", DOCUMENT)
    return [
        Row(test, *(int(n.replace(",", "").replace("-", "0")) for n in ns)) for test, *ns in found
    ]


def injections(function: Callable[..., object]) -> Row:
    """Counts the cases of a test: its parameters, their ``times``, Hypothesis's examples."""
    marks = getattr(function, "pytestmark", [])
    parameters = [
        [_case(names, value) for value in values]
        for names, values in (mark.args[:2] for mark in marks if mark.name == "parametrize")
    ]
    long = any(mark.name == "torture" for mark in marks)
    examples = 1
    if is_hypothesis_test(function):
        examples = function._hypothesis_internal_use_settings.max_examples  # type: ignore[attr-defined]  # it has no public name
    counted = {False: 0, True: 0}
    for case in product(*parameters):
        counted[long or any(torture for _, torture in case)] += examples * prod(n for n, _ in case)
    return Row(function.__name__, counted[False], counted[True])


def _case(names: str | tuple[str, ...], value: Any) -> tuple[int, bool]:
    """How often a parameter's value injects, and whether only ``make torture`` has it."""
    torture = any(mark.name == "torture" for mark in getattr(value, "marks", ()))
    named = names.replace(" ", "").split(",") if isinstance(names, str) else list(names)
    plain = value.values if hasattr(value, "marks") else (value if len(named) > 1 else (value,))
    return (plain[named.index(TIMES)] if TIMES in named else 1), torture


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.test.partition("::")[2])
def test_the_table_counts_what_the_test_injects(row: Row) -> None:
    file, _, name = row.test.partition("::")
    module = import_module(file.removesuffix(".py").replace("/", "."))
    assert injections(getattr(module, name))[1:] == row[1:]


def test_no_test_is_listed_twice_and_every_file_of_faults_is_named() -> None:
    named = [row.test for row in rows()]
    assert len(set(named)) == len(named) > 20
    files = {test.partition("::")[0] for test in named}
    assert {
        f"tests/fault/{path.name}" for path in (ROOT / "tests/fault").glob("test_*.py")
    } <= files


def test_every_threat_that_is_stopped_names_its_test() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text()
    named: list[Sequence[str]] = []
    for table in text.split(" | What stops it | Test |\n")[1:]:
        for row in takewhile(lambda line: line.startswith("| "), table.splitlines()[1:]):
            test = re.search(r"\| `(tests/[\w/]+\.py)::(\w+)` \|$", row)
            assert test, row
            named.append(test.groups())
    assert len(named) > 25
    for file, name in named:
        assert callable(getattr(import_module(file.removesuffix(".py").replace("/", ".")), name))


def test_the_counting_counts() -> None:
    @pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.torture)])
    @pytest.mark.parametrize(("a", "b"), [(1, 2), (3, 4)])
    def test_both(times: int, a: int, b: int) -> None: ...

    @pytest.mark.torture
    def test_long() -> None: ...

    assert injections(test_both)[1:] == (6, 100)
    assert injections(test_long)[1:] == (0, 1)


def test_the_last_run_has_a_date() -> None:
    [said] = re.findall(r"Last run of the long tests of `tests/fault`: (\d{4}-\d\d-\d\d)", DOCUMENT)
    assert date.fromisoformat(said) >= date(2026, 11, 22)
