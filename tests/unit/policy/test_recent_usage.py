"""Who asks for the most now, beside what was asked for since the log began."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from signer.policy.recent_usage import HOUR, MINUTE, Busy, RecentUsage

STEPS = st.lists(
    st.tuples(
        st.floats(1, 400), st.dictionaries(st.sampled_from("abc"), st.integers(1, 50), max_size=3)
    ),
    max_size=40,
)


def test_a_flood_of_now_is_not_hidden_behind_old_totals() -> None:
    recent = RecentUsage()
    assert recent.busiest(0, 5) == []
    recent.add(0, {"old": 311_128, "idle": 7})
    assert recent.busiest(0, 5) == [Busy("old", 0, 0, 311_128), Busy("idle", 0, 0, 7)]
    recent.add(10, {"old": 311_128, "idle": 7, "flood": 90})
    recent.add(20, {"old": 311_129, "idle": 7, "flood": 95})
    assert recent.busiest(20, 2) == [Busy("flood", 95, 95, 95), Busy("old", 1, 1, 311_129)]
    assert recent.busiest(75, 2)[0] == Busy("flood", 5, 95, 95)
    assert recent.busiest(20 + HOUR, 1) == [Busy("old", 0, 0, 311_129)]


@given(STEPS)
def test_it_is_what_a_list_of_all_samples_gives(steps: list[tuple[float, dict[str, int]]]) -> None:
    """The minute exactly; the hour without up to its oldest ten minutes, and never more."""
    recent, now, totals = RecentUsage(), 0.0, Counter[str]()
    recent.add(now, dict(totals))
    samples: list[tuple[float, dict[str, int]]] = []
    for wait, asked in steps:
        now += wait
        totals.update(asked)
        samples.append((now, asked))
        recent.add(now, dict(totals))
    for busy in recent.busiest(now, 3):

        def since(seconds: float, name: str = busy.facility) -> int:
            return sum(asked.get(name, 0) for at, asked in samples if at > now - seconds)

        assert busy.minute == since(MINUTE)
        assert since(HOUR - 1000) <= busy.hour <= since(HOUR)
        assert busy.items == totals[busy.facility]
