import math
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.observe.history import EVERY_SECONDS, SPAN_SECONDS, History, Totals, quantile, sample

BOUNDS = (0.1, 0.2, 0.4)


def totals(signed: float = 0, failed: float = 0, calls: tuple[float, ...] = (0, 0, 0, 0)) -> Totals:
    return Totals(signed, failed, BOUNDS, calls)


@pytest.mark.parametrize(
    ("part", "cumulative", "expected"),
    [
        (0.5, (0, 0, 0, 0), None),
        (0.5, (10, 10, 10, 10), 0.05),
        (1.0, (10, 10, 10, 10), 0.1),
        (0.5, (0, 10, 10, 10), 0.15),
        (0.99, (0, 0, 100, 100), 0.2 + 0.2 * 0.99),
        (0.5, (5, 5, 5, 10), 0.1),
        (0.99, (0, 0, 0, 10), 0.4),
    ],
)
def test_a_quantile_is_where_its_bucket_says(
    part: float, cumulative: tuple[float, ...], expected: float | None
) -> None:
    assert quantile(part, BOUNDS, cumulative) == (
        None if expected is None else pytest.approx(expected)
    )


@given(
    st.lists(st.integers(0, 1000), min_size=4, max_size=4).filter(any),
    st.floats(0.01, 1),
    st.floats(0.01, 1),
)
def test_quantiles_rise_and_stay_in_the_buckets_that_have_events(
    counts: list[int], one: float, other: float
) -> None:
    cumulative = list(accumulate(counts))
    low, high = (quantile(part, BOUNDS, cumulative) for part in sorted((one, other)))
    assert low is not None
    assert high is not None
    assert low <= high or math.isclose(low, high)
    edges = (0.0, *BOUNDS, BOUNDS[-1])
    first, last = counts.index(next(filter(None, counts))), max(i for i in range(4) if counts[i])
    assert edges[first] <= low
    assert high <= edges[last + 1] + 1e-12


def test_a_sample_is_what_happened_between_two_looks() -> None:
    old, new = totals(100, 5, (10, 10, 10, 10)), totals(300, 6, (10, 20, 20, 20))
    between = sample(50.0, old, 60.0, new)
    assert (between.time, between.signed, between.failed) == (60.0, 20.0, 0.1)
    assert between.p50 == pytest.approx(0.15)
    quiet = sample(60.0, new, 70.0, new)
    assert (quiet.signed, quiet.p50, quiet.p99) == (0.0, None, None)


def test_an_hour_is_kept() -> None:
    history, now = History(), 1000.0
    assert history.due(now)
    assert history.samples() == ()
    for count in range(500):
        history.add(now, totals(signed=count * 10))
        assert not history.due(now + EVERY_SECONDS - 0.1)
        now += EVERY_SECONDS
        assert history.due(now)
    samples = history.samples()
    assert len(samples) == SPAN_SECONDS / EVERY_SECONDS
    assert samples[-1].time - samples[0].time == SPAN_SECONDS - EVERY_SECONDS
    assert {each.signed for each in samples} == {1.0}
