from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.policy.lifetime import KeyItems, LifetimeRefusal, VersionCharge
from signer.policy.usage import QuotaRefusal, Usage
from signer.policy.values import WINDOWS, Quota

MONDAY = 1_767_225_600.0  # 2026-01-01T00:00:00Z: a day begins
QUOTAS = st.lists(
    st.builds(Quota, st.integers(1, 60), st.sampled_from(sorted(WINDOWS.values()))),
    max_size=4,
    unique_by=lambda quota: quota.window_seconds,
).map(tuple)
# Batches and the seconds that pass before them; a clock may be set back.
CHARGES = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from([-90.0, -1.0, 0.0, 0.3, 1.0, 20.0, 3600.0])),
    max_size=40,
)


def charge(usage: Usage, quotas: tuple[Quota, ...], items: int, now: float) -> QuotaRefusal | None:
    """Charges facility f, without a key version."""
    refusal = usage.charge("f", quotas, items, now)
    assert not isinstance(refusal, LifetimeRefusal)
    return refusal


@given(QUOTAS, CHARGES)
def test_no_window_ever_holds_more_than_its_limit(
    quotas: tuple[Quota, ...], charges: list[tuple[int, float]]
) -> None:
    usage = Usage()
    now, latest = MONDAY, 0.0
    passed: dict[tuple[int, int], int] = {}
    for items, step in charges:
        now += step
        latest = max(latest, now)
        before = usage.remaining("f", quotas, now)
        refusal = charge(usage, quotas, items, now)
        after = usage.remaining("f", quotas, now)
        if refusal is None:
            assert after == tuple(left - items for left in before)
            for quota in quotas:
                window = (quota.window_seconds, int(latest // quota.window_seconds))
                passed[window] = passed.get(window, 0) + items
                assert passed[window] <= quota.limit
        else:
            assert after == before
            assert any(items > left for left in before)
            assert refusal.quota in quotas


@given(QUOTAS.filter(bool), CHARGES)
def test_a_refused_batch_passes_after_the_returned_time(
    quotas: tuple[Quota, ...], charges: list[tuple[int, float]]
) -> None:
    usage = Usage()
    now = MONDAY
    for items, step in charges:
        now += step
        refusal = charge(usage, quotas, items, now)
        if refusal is not None and refusal.retry_after is None:
            assert items > refusal.quota.limit
        elif refusal is not None:
            assert refusal.retry_after is not None
            assert refusal.retry_after > 0
            now += refusal.retry_after + 0.001  # floats near 2**31 are rounded
            assert usage.charge("f", quotas, items, now) is None


def test_all_windows_or_none() -> None:
    usage = Usage()
    quotas = (Quota(10, 1), Quota(15, 86_400))
    assert usage.charge("f", quotas, 10, MONDAY) is None
    assert usage.charge("f", quotas, 10, MONDAY + 1) == QuotaRefusal(quotas[1], 86_399, used=10)
    assert usage.remaining("f", quotas, MONDAY + 1) == (10, 5)
    assert usage.charge("f", quotas, 5, MONDAY + 1) is None


def test_of_two_full_windows_the_longer_wait_is_returned() -> None:
    usage = Usage()
    quotas = (Quota(5, 1), Quota(5, 60))
    usage.charge("f", quotas, 5, MONDAY)
    assert usage.charge("f", quotas, 1, MONDAY + 0.5) == QuotaRefusal(quotas[1], 59.5, used=5)


def test_batch_above_a_limit_never_passes() -> None:
    usage = Usage()
    quota = Quota(200, 1)
    assert usage.charge("f", (quota,), 201, MONDAY) == QuotaRefusal(quota, None)
    assert usage.remaining("f", (quota,), MONDAY) == (200,)


def test_facilities_are_counted_apart() -> None:
    usage = Usage()
    quota = Quota(5, 60)
    assert usage.charge("a", (quota,), 5, MONDAY) is None
    assert usage.charge("b", (quota,), 5, MONDAY) is None


def test_clock_set_back_refills_nothing() -> None:
    usage = Usage()
    quota = Quota(5, 60)
    usage.charge("f", (quota,), 5, MONDAY + 60)
    assert usage.charge("f", (quota,), 1, MONDAY) == QuotaRefusal(quota, 120, used=5)
    assert usage.remaining("f", (quota,), MONDAY) == (0,)


@given(QUOTAS, CHARGES, CHARGES)
def test_restored_usage_goes_on_as_if_nothing_had_happened(
    quotas: tuple[Quota, ...], before: list[tuple[int, float]], after: list[tuple[int, float]]
) -> None:
    usage, restored = Usage(), Usage()
    now = MONDAY
    for items, step in before:
        now += step
        usage.charge("f", quotas, items, now)
    counted = {facility: entry.windows.copy() for facility, entry in usage._entries.items()}
    restored.restore(counted, {})
    # A log knows nothing of refused batches: their time may be forgotten.
    now = max(now, usage._latest)
    for items, step in after:
        now += abs(step)
        assert restored.remaining("f", quotas, now) == usage.remaining("f", quotas, now)
        assert restored.charge("f", quotas, items, now) == usage.charge("f", quotas, items, now)


def test_restored_usage_is_not_refilled_by_a_clock_set_back() -> None:
    usage = Usage()
    usage.charge("gone", (), 3, MONDAY)
    quota = Quota(5, 60)
    keys = {"f": {"k": KeyItems(1000)}, "g": {"k": KeyItems(7)}}
    usage.restore({"f": {60: (int(MONDAY // 60), 5)}}, keys)
    assert usage.charge("f", (quota,), 1, MONDAY - 60) == QuotaRefusal(quota, 120, used=5)
    assert usage.remaining("f", (quota,), MONDAY + 60) == (5,)
    assert usage.busiest(5) == [("f", 1000), ("g", 7)]


def test_a_time_that_was_wrong_gives_nothing_back_and_holds_up_nothing() -> None:
    quotas = [Quota(10, 60), Quota(10, 86_400)]
    usage = Usage()
    assert usage.charge("f", quotas, 4, 1e9) is None  # years ahead
    now = 1e6
    usage.set_back(now)
    assert usage.remaining("f", quotas, now) == (6, 6)
    assert usage.remaining("f", quotas, now + 60) == (10, 6)
    assert usage.remaining("f", quotas, now + 86_400) == (10, 10)
    assert usage.charge("f", quotas, 6, now) is None
    assert usage.charge("f", quotas, 1, now) is not None


def test_limit_lowered_by_a_reload_holds_at_once() -> None:
    usage = Usage()
    usage.charge("f", (Quota(10, 60),), 8, MONDAY)
    assert usage.remaining("f", (Quota(5, 60),), MONDAY) == (0,)
    assert usage.charge("f", (Quota(5, 60),), 1, MONDAY) is not None


# --- the lifetime of a version ------------------------------------------------------------------


# Batches of one of two versions: items asked, those of them that are recorded, its bound then.
BATCHES = st.lists(
    st.tuples(
        st.integers(1, 2), st.integers(1, 9), st.integers(0, 9), st.sampled_from([20, 40, None])
    ),
    max_size=60,
)


@given(BATCHES)
def test_no_version_ever_signs_more_than_its_bound(
    batches: list[tuple[int, int, int, int | None]],
) -> None:
    usage, counted = Usage(), {1: 0, 2: 0}
    for number, items, recorded, limit in batches:
        charge = VersionCharge("k", number, min(items, recorded), limit)
        refusal = usage.charge("f", (), items, MONDAY, charge)
        fits = limit is None or counted[number] + charge.items <= limit
        assert refusal == (None if fits else LifetimeRefusal(limit or 0, counted[number]))
        counted[number] += charge.items if fits else 0
        assert {each: usage.signed("f", "k", each) for each in counted} == counted


def test_a_batch_counts_in_the_quota_and_the_lifetime_or_in_neither() -> None:
    usage, quota = Usage(), Quota(10, 60)
    first, second = VersionCharge("k", 1, 6, 12), VersionCharge("k", 1, 7, 12)
    assert usage.charge("f", (quota,), 6, MONDAY, first) is None
    assert usage.charge("f", (quota,), 7, MONDAY, second) == LifetimeRefusal(12, 6)
    assert usage.charge("f", (quota,), 6, MONDAY, first) == QuotaRefusal(quota, 60, used=6)
    assert (usage.remaining("f", (quota,), MONDAY), usage.signed("f", "k", 1)) == ((4,), 6)
    assert usage.signed("f", "other", 1) == usage.signed("other", "k", 1) == 0


def test_a_lifetime_does_not_begin_again_with_time() -> None:
    usage, charge = Usage(), VersionCharge("k", 1, 5, 9)
    assert usage.charge("f", (), 5, MONDAY, charge) is None
    usage.set_back(MONDAY - 10**9)
    assert usage.charge("f", (), 5, MONDAY + 10**9, charge) == LifetimeRefusal(9, 5)


def test_what_was_restored_is_not_changed_by_what_comes_after() -> None:
    usage, before = Usage(), KeyItems()
    before.add(1, 4)
    usage.restore({}, {"f": {"k": before}})
    usage.charge("f", (), 5, MONDAY, VersionCharge("k", 1, 5, None))
    assert (usage.signed("f", "k", 1), before.of(1)) == (9, 4)


def test_busiest_first_and_refused_items_do_not_count() -> None:
    usage = Usage()
    for facility, items in [("b", 5), ("a", 5), ("c", 9), ("d", 1)]:
        usage.charge(facility, (), items, MONDAY)
    usage.charge("d", (Quota(1, 1),), 100, MONDAY)
    usage.charge("e", (Quota(1, 1),), 100, MONDAY)
    assert usage.busiest(3) == [("c", 9), ("a", 5), ("b", 5)]
    assert usage.busiest(10)[-1] == ("d", 1)


@pytest.mark.parametrize(("name", "seconds"), WINDOWS.items())
def test_windows_have_names(name: str, seconds: int) -> None:
    assert Quota(1, seconds).window == name
    assert str(Quota(50_000, seconds)) == f"50000 per {name}"


def test_threads_together_pass_no_more_than_the_limit() -> None:
    usage = Usage()
    quota = Quota(1000, 86_400)
    passed: list[int] = []

    def work() -> None:
        passed.extend(1 for _ in range(500) if usage.charge("f", (quota,), 1, MONDAY) is None)

    with ThreadPoolExecutor(4) as threads:
        for _ in range(4):
            threads.submit(work)
    assert len(passed) == 1000
    assert usage.busiest(1) == [("f", 1000)]
