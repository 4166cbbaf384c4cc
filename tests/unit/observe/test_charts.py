import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.observe.charts import HEIGHT, WIDTH, Line, ceiling, chart, scale

VALUES = st.none() | st.floats(0, 1e9)


@pytest.mark.parametrize(
    ("value", "end"), [(0, 1), (0.3, 0.5), (1, 1), (1.1, 2), (2.1, 5), (51, 100), (12_000, 20_000)]
)
def test_an_axis_ends_at_a_round_number(value: float, end: float) -> None:
    assert ceiling(value) == pytest.approx(end)


@given(st.floats(1e-5, 1e12))
def test_an_axis_holds_its_values_and_not_much_more(value: float) -> None:
    assert value <= ceiling(value) * (1 + 1e-9)
    assert ceiling(value) <= value * 2.5 * (1 + 1e-9)


@given(st.lists(st.tuples(st.floats(-100, 5000), VALUES), max_size=20))
def test_a_chart_is_well_formed_and_draws_nothing_outside(
    points: list[tuple[float, float | None]],
) -> None:
    figure = ET.fromstring(chart("A & B", "<x>", [Line('"quoted"', points)], 3600))  # noqa: S314
    paths = [path.get("d") or "" for path in figure.iter("path") if path.get("class") == "line0"]
    drawn = [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", "".join(paths))]
    inside = [value for age, value in points if value is not None and 0 <= age <= 3600]
    assert len(drawn) == len(inside)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in drawn)


def test_a_gap_is_a_gap_and_the_newest_and_highest_are_told() -> None:
    points = [(30.0, 1.0), (20.0, 4.0), (10.0, None), (0.0, 2.0)]
    text = chart("Speed", "ms", [Line("one", points), Line("none", [])], 30)
    assert re.search(r'class="line0" d="M4\.0 [\d.]+h0L[\d. ]+M600\.0 [\d.]+h0"', text)
    assert "one: now 2, highest 4 ms" in text
    assert "none: no data" in text
    assert 'aria-label="Speed: one now 2, highest 4 ms; none no data"' in text


def test_one_outlier_does_not_flatten_the_rest() -> None:
    usual = [(float(age), 1.0 + age % 3) for age in range(100)]
    points = [(100.0, 900.0), *usual]
    text = chart("Speed", "ms", [Line("one", points)], 3600)
    assert ">10 ms, highest 900</text>" in text
    heights = {float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", text.partition("line0")[2])}
    assert max(heights) - min(heights) > HEIGHT / 2
    assert ">5 ms</text>" in chart("Speed", "ms", [Line("one", usual)], 3600)


@given(st.lists(st.floats(0, 1e9), max_size=60))
def test_a_scale_holds_nearly_all_values(values: list[float]) -> None:
    end = scale(values)
    assert end <= ceiling(max(values, default=0.0)) * (1 + 1e-9)
    above = sum(value > end * (1 + 1e-9) for value in values)
    assert above <= len(values) / 20
