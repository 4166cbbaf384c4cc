import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.cli.bench import _choose, _compare
from signer.cli.bench_table import table
from signer.errors import OperatorError
from signer.formats.payloads import PayloadError, json_object
from signer.model import Format, KeyName
from signer.tools.bench.cases import CASES, COMPARISONS, Case, facilities_for, load_keys
from signer.tools.bench.contenders import Checkout, Contender, LoadedContender, slice_of
from signer.tools.bench.figures import (
    CaseRow,
    Round,
    Slice,
    compared,
    figures,
    misses,
    quantile,
    row_of,
    spread,
)
from signer.tools.bench.load import LoadTool, Turn, floods_of, read_turn, traffic_of
from signer.tools.bench.python_load import Tally, paced
from signer.tools.bench.run import _Optional, rounds_of
from signer.tools.bench.stepping import Stepping
from signer.tools.bench.workload import BAD, PAYLOADS, batches, requests
from signer.v1 import signing_pb2

BY_NAME = {case.name: case for case in CASES}
MESSAGE = BY_NAME["message"]


# --- what is sent ------------------------------------------------------------------------------


def test_requests_go_round_the_keys_of_all_callers_together() -> None:
    keys = [KeyName("f", str(number)) for number in range(5)]
    callers = [requests(batches(Format.MESSAGE, 3, each), keys, each, 2) for each in range(2)]
    named = [
        signing_pb2.SignBatchRequest.FromString(callers[number % 2](number // 2)).key
        for number in range(10)
    ]
    assert named == [str(key) for key in keys] * 2


@pytest.mark.parametrize("message_format", sorted(PAYLOADS))
def test_requests_are_whole_and_their_payloads_differ(message_format: Format) -> None:
    key = KeyName("f", "k")
    source = requests(batches(message_format, 50, 0), [key], 0, 1)
    first, second = (signing_pb2.SignBatchRequest.FromString(source(n)) for n in range(2))
    assert first.key == str(key)
    assert signing_pb2.Format.Name(first.format) == f"FORMAT_{message_format}"
    assert len({*first.payloads, *second.payloads}) == 100
    if message_format in {Format.JWS, Format.HCERT}:
        assert all(isinstance(json.loads(payload), dict) for payload in first.payloads)


@pytest.mark.parametrize("kind", BAD)
def test_bad_payloads_do_not_parse(kind: str) -> None:
    source = requests(batches(Format.JWS, 3, 0, bad=kind), [KeyName("f", "k")], 0, 1)
    for payload in signing_pb2.SignBatchRequest.FromString(source(0)).payloads:
        with pytest.raises(PayloadError):
            json_object(payload)


def test_cases_have_formats_that_the_clients_can_make() -> None:
    assert {case.format for case in CASES} <= set(PAYLOADS)
    assert len(BY_NAME) == len(CASES)
    assert {name for pair in COMPARISONS for name in pair[:2]} <= set(BY_NAME)


def test_the_names_of_load_keys_are_those_of_signer_dev() -> None:
    assert [str(key) for key in load_keys(10)][-1] == "facilities/l-00010/keys/records"
    assert facilities_for([BY_NAME["keys-10"], MESSAGE]) == 10
    assert facilities_for([BY_NAME["keys-10000"], BY_NAME["keys-10"]]) == 10_000
    assert facilities_for([MESSAGE]) == 0


# --- load clients ------------------------------------------------------------------------------

DEV = {
    "address": "127.0.0.1:1",
    "server_name": "localhost",
    "ca": "ca.pem",
    "clients": {name: {"cert": f"{name}.pem", "key": f"{name}.key"} for name in ("issuer",)},
    "keys": [{"name": "facilities/01-001/keys/records", "public_key": "public.pem"}],
}
LINE = {
    "rate": 400.5,
    "p50_ms": 2.5,
    "p99_ms": 9.0,
    "items": 200,
    "failures": {"OVERLOADED": 3},
    "client_cpu_us_per_item": 50.0,
    "latencies_us": [2500, 9000],
}


def test_a_line_of_a_load_client_is_read() -> None:
    turn = read_turn(json.dumps(LINE) + "\n")
    assert turn._replace(cpu=0) == Turn(400.5, 200, [2500, 9000], {"OVERLOADED": 3}, 0, [])
    assert turn.cpu == pytest.approx(0.01)
    assert read_turn(json.dumps({**LINE, "latencies_us": None})).latencies == []


@pytest.mark.parametrize(
    "line", ["", "ready", "[]", "3", "{}", json.dumps({**LINE, "failures": 3}), '{"rate": "x"}']
)
def test_a_line_that_is_not_a_result_is_refused(line: str) -> None:
    with pytest.raises(OperatorError, match="is not a result"):
        read_turn(line)


def command(case: str, program: Path | None) -> list[str]:
    traffic = traffic_of(BY_NAME[case], "public.pem")
    return LoadTool(program)._command(DEV, traffic, "names")


def test_go_drives_all_cases_but_those_that_gather() -> None:
    go = LoadTool(Path("build/load"))
    assert {case.name for case in CASES if go.name(case) == "python"} == {
        *("gather-16", "gather-64", "gather-256", "greedy-50", "overload", "hcert-cosigned"),
        "cosigned-known",
    }
    assert {LoadTool(None).name(case) for case in CASES} == {"python"}
    assert command("single-16", Path("build/load"))[0] == "build/load"
    assert command("single-16", None)[:2] == [sys.executable, "-m"]
    assert "--gather" in command("gather-16", Path("build/load"))
    cosigned = command("hcert-cosigned", Path("build/load"))
    assert cosigned[cosigned.index("--cosigner") + 1] == "facilities/01-001/keys/records"
    for case in ("greedy-50", "overload"):
        words = command(case, Path("build/load"))
        assert words[:2] == [sys.executable, "-m"]
        assert {"--pace", "--deadline"} <= set(words)
    assert "--public-key" in command("single-16", Path("build/load"))
    assert "--public-key" not in command("single-16", None)


@pytest.mark.parametrize(
    ("case", "callers", "window", "connections"),
    [("single-64", "64", "0", "1"), ("stream-4x64", "4", "64", "4"), ("message", "4", "0", "1")],
)
def test_calls_share_a_connection_and_streams_do_not(
    case: str, callers: str, window: str, connections: str
) -> None:
    words = command(case, None)
    options = dict(zip(words[3::2], words[4::2], strict=False))
    assert options["--callers"] == callers
    assert options["--window"] == window
    assert options["--connections"] == connections


def test_the_flood_has_a_principal_of_its_own_where_there_is_one() -> None:
    case = BY_NAME["flood-bad"]
    [alone] = floods_of(case, DEV)
    [both] = floods_of(case, {**DEV, "clients": {"issuer": {}, "issuer-b": {}}})
    assert (alone.client, both.client) == ("issuer", "issuer-b")
    assert (both.bad, both.batch, both.format) == ("cut", 4096, Format.JWS)
    assert floods_of(MESSAGE, DEV) == []
    everybody: Any = dict.fromkeys(("issuer", "issuer-b", "issuer-c"))
    two = floods_of(BY_NAME["greedy-two"], {**DEV, "clients": everybody})
    assert [each.client for each in two] == ["issuer-b", "issuer-c"]


def test_a_request_counts_by_the_part_of_its_time_in_the_window() -> None:
    now = time.monotonic()
    tally = Tally(now - 1, now + 100)
    tally.answered(now - 3, 500)  # two of its three seconds were before the window
    assert tally.within == pytest.approx(500 / 3, rel=0.05)
    assert (tally.items, len(tally.latencies)) == (500, 1)
    early = Tally(now + 100, now + 101)
    early.answered(now - 3, 500)
    assert (early.within, early.items, early.latencies) == (0, 500, [])


STEPPING = """
import sys
print("ready", flush=True)
for number, line in enumerate(sys.stdin):
    if number == 2:
        sys.exit("the token is gone")
    print(number, flush=True)
"""


def test_a_program_measures_once_for_every_line() -> None:
    with Stepping("it", [sys.executable, "-c", STEPPING], os.environ, 1) as process:
        for number in range(2):
            process.begin()
            assert process.finish() == f"{number}\n"
        process.begin()
        with pytest.raises(OperatorError, match="it failed: the token is gone"):
            process.finish()
        with pytest.raises(OperatorError, match="it failed: the token is gone"):
            process.begin()


def test_a_program_that_never_becomes_ready_is_reported() -> None:
    stepping = Stepping("it", [sys.executable, "-c", "raise SystemExit(3)"], os.environ, 1)
    with pytest.raises(OperatorError, match="exit code 3"), stepping:
        pass


# --- figures -----------------------------------------------------------------------------------


@given(st.lists(st.floats(0.001, 10), min_size=1, max_size=200), st.floats(0, 1))
def test_quantiles_have_their_part_of_the_values_below_them(
    values: Sequence[float], at: float
) -> None:
    found = quantile(values, at)
    assert found in values
    assert sum(value <= found for value in values) >= at * len(values) - 1e-9


def test_quantiles_of_nothing_are_nothing() -> None:
    assert quantile([], 0.5) == 0


@given(st.lists(st.floats(1, 1000), min_size=2, max_size=50), st.floats(0.1, 10))
def test_the_spread_does_not_depend_on_the_unit(values: Sequence[float], unit: float) -> None:
    assert spread([value * unit for value in values]) == pytest.approx(spread(values), abs=1e-9)


def test_the_spread_is_that_of_the_middle_eight_tenths() -> None:
    assert spread([100.0] * 20) == 0
    assert spread([100.0] * 19 + [900.0]) == 0  # one stall of twenty
    assert spread([80.0, 90.0, 100.0, 110.0, 120.0]) == pytest.approx(0.32)
    assert spread([5.0]) == 0
    assert spread([0.0, 0.0]) == 0


def measured(rate: float, **changes: Any) -> Slice:
    made = Slice(rate, 100, [1000] * 98 + [4000, 9000], 0.0004, 0.0002, {})
    return made._replace(**changes)


def one(plain: float, best: float, rate: float, theirs: Slice | None = None) -> Round:
    return Round(plain, best, measured(rate), theirs)


def row(case: Case = MESSAGE, rounds: Sequence[Round] = (), **changes: Any) -> CaseRow:
    made = row_of(case, rounds or [one(100, 200, 150)], checks=64, client="go")
    return CaseRow(**{**made.__dict__, **changes})


def test_ratios_are_medians_of_the_rounds_own() -> None:
    made = row(rounds=[one(100, 200, 150), one(200, 250, 200), one(400, 500, 800)])
    assert made.ratio_plain == 1.5  # of 1.5, 1.0 and 2.0: not 200 / 200
    assert made.ratio_best == 0.8
    assert (made.p50_ms, made.p99_ms) == (1.0, 9.0)
    assert made.front_cpu_us_per_item == pytest.approx(4)
    assert made.client_cpu_us_per_item == pytest.approx(2)
    assert made.spread == pytest.approx((1.9 - 1.1) / 1.5)


def test_the_fields_of_the_json_are_these() -> None:
    fields = {
        *("case", "format", "algorithm", "batch", "callers", "checks", "rate", "plain", "best"),
        *("ratio_plain", "ratio_best", "spread", "p50_ms", "p99_ms", "front_cpu_us_per_item"),
        *("client_cpu_us_per_item", "client", "plain_spread", "judged", "failures"),
    }
    assert set(row().as_dict()) == fields
    assert set(row(against={"checkout": "before"}).as_dict()) == {*fields, "against"}
    assert json.loads(json.dumps(row(rate=1 / 3).as_dict()))["rate"] == 0.3333


def test_nothing_is_judged_where_the_plain_loop_varies_by_more_than_a_quarter() -> None:
    steady = row(rounds=[one(100, 200, 10), one(110, 200, 10), one(90, 200, 10)])
    assert steady.judged
    assert "ratio_plain 0.10, goal at least 1.32" in misses(MESSAGE, steady)
    unsteady = row(rounds=[one(100, 200, 10), one(150, 200, 10), one(90, 200, 10)])
    assert unsteady.plain_spread > 0.25
    assert not unsteady.judged
    assert not misses(MESSAGE, unsteady)


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({"ratio_best": 0.83}, []),
        ({"ratio_best": 0.82}, ["ratio_best 0.82, goal at least 0.83"]),
        (
            {"ratio_best": 1.0, "front_cpu_us_per_item": 8.5},
            ["front_cpu_us_per_item 8.50, goal at most 8"],
        ),
        ({"failures": {"OVERLOADED": 7}}, ["7 requests failed: OVERLOADED"]),
        ({"failures": {"OVERLOADED": 7}, "judged": False}, ["7 requests failed: OVERLOADED"]),
    ],
)
def test_goals_are_least_ratios_most_costs_and_no_failures(
    changes: dict[str, Any], missed: list[str]
) -> None:
    assert misses(MESSAGE, row(**{"ratio_best": 1.0, **changes})) == missed


def test_without_any_answer_there_are_no_figures() -> None:
    with pytest.raises(OperatorError, match="OVERLOADED 5 times"):
        figures([measured(0, items=0, latencies=[], failures={"OVERLOADED": 5})])
    with pytest.raises(OperatorError, match="longer --slice"):
        figures([measured(0, items=0, latencies=[])])


def test_beside_a_flood_the_rate_is_the_floods_and_the_times_are_not() -> None:
    alone = Turn(100.0, 50, [2000], {}, 0.1)
    flood = Turn(9000.0, 4096, [800_000], {"OVERLOADED": 1}, 0.2)
    made = slice_of(alone, [flood], 0.5)
    assert (made.rate, made.items, made.latencies) == (9000.0, 4146, [2000])
    assert made.client_cpu == pytest.approx(0.3)
    assert slice_of(alone, [], 0.5).rate == 100.0
    two = slice_of(alone, [flood, flood], 0.5)
    assert (two.rate, two.items) == (18_000.0, 8242)


class Scripted:
    """A load client that does what the turn before it allows."""

    def __init__(self) -> None:
        self.paces: list[float | None] = []

    def begin(self, pace: float | None = None) -> None:
        self.paces.append(pace)

    def finish(self) -> Turn:
        if self.paces[-1] == 0:
            return Turn(2000.0, 4000, [50_000], {}, 0.1)
        return Turn(1900.0, 3800, [90_000], {"OVERLOADED": 60}, 0.1, [9_000, 70_000])


def test_an_overload_asks_for_so_many_times_what_was_possible_just_before() -> None:
    case, client = BY_NAME["overload"], Scripted()
    contender: Any = SimpleNamespace(front_cpu=lambda: 0.0)
    measuring: Any = client
    made = LoadedContender(case, contender, measuring, [], None).slice()
    assert client.paces == [0, 3 * 2000 / 100]
    assert (made.rate, made.capacity, made.failures) == (1900.0, 2000.0, {"OVERLOADED": 60})
    found = row(case, [Round(100, 200, made)] * 3)
    assert (found.ratio_capacity, found.refused_p99_ms) == (0.95, 70.0)
    assert misses(case, found) == ["refused_p99_ms 70.00, goal at most 50"]
    assert {"ratio_capacity", "refused_p99_ms"} <= set(found.as_dict())
    assert any(
        "0.95 of the capacity was answered" in line for line in table([(case, found)]).splitlines()
    )


def test_each_key_is_used_before_the_first_slice() -> None:
    case, client = replace(BY_NAME["wrapped-1"], keys=load_keys(2000), uses=4), Scripted()
    measuring: Any = client
    contender: Any = SimpleNamespace(front_cpu=lambda: 0.0)
    LoadedContender(case, contender, measuring, [], None).use_keys()
    assert client.paces == [None] * 3, "3,800 items each"
    assert [str(key) for key in case.loop_keys] == ["facilities/moh/keys/digest"]
    assert BY_NAME["single-1"].loop_keys == BY_NAME["single-1"].keys
    assert {*BY_NAME["wrapped-15000"].keys} == {*load_keys(15_000)}


def test_calls_come_at_their_pace_whatever_becomes_of_those_before() -> None:
    """None of them is ever answered."""
    sent: list[float] = []

    class Silent:
        async def one(self, _: Tally, at: float) -> None:
            sent.append(at)
            await asyncio.sleep(0.3)

    async def turn() -> float:
        began = time.monotonic()
        callers: Any = [Silent(), Silent()]
        await paced(callers, 200, Tally(began, began + 0.5))
        return began

    began = asyncio.run(turn())
    assert sent == sorted(sent)
    assert all(began <= at < began + 0.5 for at in sent)
    assert 50 < len(sent) < 150


def test_another_checkout_is_compared_slice_by_slice() -> None:
    theirs = measured(100, front_cpu=0.0002, latencies=[500] * 100)
    rounds = [one(1, 1, 120, theirs), one(1, 1, 100, theirs), one(1, 1, 500, theirs), one(1, 1, 9)]
    against = compared("before", rounds)
    assert against["checkout"] == "before"
    assert against["rate"] == 100
    assert against["ratio_rate"] == 1.2
    assert against["ratio_p50"] == 2
    assert against["ratio_p99"] == 18
    assert against["ratio_front_cpu"] == pytest.approx(2)
    with pytest.raises(OperatorError, match="no request was answered"):
        compared("before", [one(1, 1, 120)])


class Measuring:
    """A loaded contender whose third slice fails."""

    def __init__(self) -> None:
        self.slices = 0

    def slice(self) -> Slice:
        self.slices += 1
        if self.slices == 3:
            raise OperatorError("it has no SignStream")
        return measured(100)


def test_a_contender_that_fails_is_left_out_from_then_on() -> None:
    contender: Any = Measuring()
    optional = _Optional(lambda: contender)
    assert [bool(optional.slice()) for _ in range(5)] == [True, True, False, False, False]
    assert optional.problem == "it has no SignStream"
    assert contender.slices == 3

    def refused() -> Any:
        raise OperatorError("it has no such key")

    never = _Optional(refused)
    assert (never.slice(), never.problem) == (None, "it has no such key")
    assert _Optional(lambda: None).slice() is None


def test_cases_with_longer_slices_have_fewer_rounds() -> None:
    assert rounds_of(BY_NAME["single-16"], 12) == 12
    assert rounds_of(MESSAGE, 12) == 6
    assert rounds_of(BY_NAME["flood-bad"], 12) == 3
    assert rounds_of(BY_NAME["flood-bad"], 4) == 3
    assert rounds_of(BY_NAME["flood-bad"], 1) == 1


def test_a_comparison_of_two_cases_is_missed_only_where_both_are_judged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    single = row(BY_NAME["single-16"], ratio_plain=0.1)
    gather = row(BY_NAME["gather-64"], ratio_plain=0.5)
    [missed] = _compare([single, gather])
    assert missed == "gather-64 has 5.00 times the ratio of single-16 (goal: at least 6)"
    assert not _compare([single, row(BY_NAME["gather-64"], ratio_plain=0.61)])
    assert not _compare([single])
    capsys.readouterr()
    assert not _compare([single, row(BY_NAME["gather-64"], ratio_plain=0.5, judged=False)])
    assert "not judged" in capsys.readouterr().err


def test_an_unknown_case_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(click.UsageError, match=r"unknown case flood; cases: message, .*flood-bad"):
        _choose(("single-16", "flood"))


# --- another checkout --------------------------------------------------------------------------


def test_a_folder_that_is_not_there_is_not_a_checkout(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="not a checkout"):
        Checkout(tmp_path / "absent")
    with pytest.raises(OperatorError, match="not a checkout"):
        Checkout(tmp_path)


def made_checkout(folder: Path) -> Path:
    (folder / "signer").mkdir(parents=True)
    (folder / "signer/__main__.py").touch()
    return folder


def test_a_checkout_needs_its_own_environment(tmp_path: Path) -> None:
    before = made_checkout(tmp_path / "before")
    with pytest.raises(OperatorError, match="make setup"):
        Checkout(before)
    (before / ".venv/bin").mkdir(parents=True)
    (before / ".venv/bin/python").symlink_to(sys.executable)
    checkout = Checkout(before)
    assert checkout.name == "before"
    appliance = checkout.new_appliance(tmp_path / "bench", 10)
    assert appliance.dir == tmp_path / "bench-against"
    assert appliance._arguments == ("--facilities", "10")
    assert appliance._environment["PYTHONPATH"] == str(before)
    assert appliance._command[0] == str(before / ".venv/bin/python")


def test_only_an_appliance_of_an_earlier_run_is_deleted(tmp_path: Path) -> None:
    before = made_checkout(tmp_path / "before")
    (before / ".venv/bin").mkdir(parents=True)
    (before / ".venv/bin/python").symlink_to(sys.executable)
    mine = tmp_path / "bench-against"
    mine.mkdir()
    (mine / "letters.txt").touch()
    with pytest.raises(OperatorError, match="other files"):
        Checkout(before).new_appliance(tmp_path / "bench", 0)
    (mine / "dev.json").touch()
    Checkout(before).new_appliance(tmp_path / "bench", 0)
    assert not mine.exists()


def test_the_cpu_of_a_process_is_read_from_its_clock() -> None:
    before = Contender(DEV, os.getpid()).front_cpu()
    sum(range(2_000_000))
    assert 0 < before < Contender(DEV, os.getpid()).front_cpu()


def test_a_contender_knows_its_keys() -> None:
    contender = Contender(DEV)
    there, absent = KeyName("01-001", "records"), KeyName("no", "key")
    assert contender.missing([there, absent]) == [absent]
    assert contender.public_key(str(there)) == "public.pem"
    with pytest.raises(OperatorError, match="no key"):
        contender.public_key(str(absent))


# --- the table ---------------------------------------------------------------------------------


def test_the_table_is_at_most_80_columns_wide_and_says_what_is_not_judged() -> None:
    long = BY_NAME["hcert-single-16"]
    theirs = measured(99_999.0, failures={"OVERLOADED": 7})
    against = compared("before", [one(1, 1, 120, theirs)])
    wide: dict[str, Any] = {"rate": 99_999.0, "p99_ms": 1_234.56, "front_cpu_us_per_item": 2_345.67}
    rows = [
        (long, row(long, **wide, against=against)),
        (MESSAGE, row(plain_spread=0.4, judged=False)),
        (BY_NAME["flood-bad"], row(BY_NAME["flood-bad"], against={"checkout": "b", "error": "no"})),
    ]
    shown = table(rows)
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert "message: not judged: the plain loop varied by 40% (more than 25%)" in lines
    assert any(line.startswith("message ") and line.endswith("?") for line in lines)
    assert any(line.startswith("  ours/theirs") for line in lines)
    assert "flood-bad: no figures of theirs: no" in lines
    assert "hcert-single-16: failed at theirs: 7 OVERLOADED" in lines
