"""The table of ``signer bench``, at most 80 columns wide."""

from collections.abc import Iterator, Sequence

from signer.tools.bench.cases import Case
from signer.tools.bench.figures import LARGEST_SPREAD, CaseRow, misses

_HEAD = (
    f"{'case':<15} {'rate/s':>7} {'/plain':>6} {'/best':>6} {'±':>4}"
    f" {'p50 ms':>7} {'p99 ms':>7} {'front µs':>9} {'client µs':>9}"
)


def table(rows: Sequence[tuple[Case, CaseRow]]) -> str:
    """Returns the table with its notes."""
    lines = [_HEAD, "-" * len(_HEAD)]
    notes: list[str] = []
    for case, row in rows:
        lines += _lines(case, row)
        notes += _notes(case, row)
    clients = {row.client for _, row in rows}
    lines += [
        "",
        "/plain, /best: beside the C loop on the same token; ±: of /plain, from the",
        "10th to the 90th percentile of the rounds; front, client: CPU an item of the",
        f"front process and of the load client ({', '.join(sorted(clients))});",
        "! a goal is missed, ? not judged",
    ]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _lines(case: Case, row: CaseRow) -> Iterator[str]:
    mark = "!" if misses(case, row) else " " if row.judged else "?"
    yield (
        f"{row.case:<15} {row.rate:>7.0f} {row.ratio_plain:>6.2f} {row.ratio_best:>6.2f}"
        f" {_percent(row.spread)} {row.p50_ms:>7.2f} {row.p99_ms:>7.2f}"
        f" {row.front_cpu_us_per_item:>9.1f} {row.client_cpu_us_per_item:>9.1f}{mark}"
    ).rstrip()
    against = row.against
    if against is None or "error" in against:
        return
    yield (
        f"{'  theirs':<15} {against['rate']:>7.0f} {'':>6} {'':>6} {'':>4}"
        f" {against['p50_ms']:>7.2f} {against['p99_ms']:>7.2f}"
        f" {against['front_cpu_us_per_item']:>9.1f} {against['client_cpu_us_per_item']:>9.1f}"
    )
    yield (
        f"{'  ours/theirs':<15} {against['ratio_rate']:>7.2f} {'':>6} {'':>6}"
        f" {_percent(against['spread'])} {against['ratio_p50']:>7.2f}"
        f" {against['ratio_p99']:>7.2f} {against['ratio_front_cpu']:>9.2f}"
    )


def _percent(spread: float) -> str:
    return f"{spread:>4.0%}"


def _notes(case: Case, row: CaseRow) -> Iterator[str]:
    if not row.judged:
        yield (
            f"{row.case}: not judged: the plain loop varied by {row.plain_spread:.0%}"
            f" (more than {LARGEST_SPREAD:.0%})"
        )
    against = row.against or {}
    for whose, failures in (("ours", row.failures), ("theirs", against.get("failures"))):
        if failures:
            failed = ", ".join(f"{number} {reason}" for reason, number in failures.items())
            yield f"{row.case}: failed at {whose}: {failed}"
    if "error" in against:
        yield f"{row.case}: no figures of theirs: {against['error']}"
    if row.ratio_capacity is not None:
        yield (
            f"{row.case}: {row.ratio_capacity:.2f} of the capacity was answered in time, refusals"
            f" took {row.refused_p99_ms:.1f} ms (p99)"
        )
    if case.floods:
        yield f"{row.case}: rate and CPU are the flood's, latencies those of the single items"
