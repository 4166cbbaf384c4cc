"""The status page at / of the metrics port, for operators without a dashboard.

Plain HTML without scripts or external resources. It shows gauges, readiness, alarms and the
last hour, and nothing of a single facility.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import NamedTuple

from signer import __version__
from signer.hsm.front.slot import WorkerStatus
from signer.observe.charts import Line, chart
from signer.observe.gauges import Values
from signer.observe.history import SPAN_SECONDS, Sample
from signer.observe.reports import Alarm
from signer.policy.lifetime import NEARLY
from signer.text import size

EVERYTHING_STOPPED = "everything is suspended by the officers: nothing is signed,"
DUE_DAYS = 90
"""Keys and certificates that end within this many days are listed."""
SOON_DAYS = 30
"""Those that end within this many days are coloured."""
USED_UP = 0.95
"""From this part of a lifetime on it is shown in red."""
_DAY = 86_400.0

_STYLE = """
:root{color-scheme:light dark;--good:#1a7f37;--bad:#cf222e;--soon:#9a6700;--rule:#8888;--l0:#0969da;
--l1:#cf222e}
@media(prefers-color-scheme:dark){:root{--good:#3fb950;--bad:#f85149;--soon:#d29922;--l0:#58a6ff;
--l1:#f85149}}
body{font:16px/1.45 system-ui,sans-serif;margin:0 auto;padding:0 1rem 2rem;max-width:64rem}
h1{font-size:1.4rem;margin:1rem 0 .2rem}h2{font-size:1.1rem;margin:1.6rem 0 .4rem}
.good{color:var(--good)}.bad{color:var(--bad)}.soon{color:var(--soon)}
.quiet{opacity:.75;font-size:.875rem;overflow-wrap:anywhere}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1rem}
figure{margin:0}figcaption{font-weight:600}figure p{margin:.2rem 0;font-size:.875rem}
svg{width:100%;height:auto;display:block}svg text{font-size:11px;fill:currentColor}
path{fill:none;stroke-width:2;stroke-linecap:round}.axis{stroke:var(--rule)}
path.line0{stroke:var(--l0)}path.line1{stroke:var(--l1)}
.key{margin-right:1rem}.key.line0{color:var(--l0)}.key.line1{color:var(--l1)}
table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;
padding:.25rem .75rem .25rem 0;border-bottom:1px solid var(--rule)}
th{font-weight:600}td:last-child{overflow-wrap:anywhere}td{font-variant-numeric:tabular-nums}
"""


class Html(str):
    """Text that is already HTML; all other text is escaped when it is put into the page."""

    __slots__ = ()


class DaemonState(NamedTuple):
    """The state of the daemon at one time.

    ``now`` and ``started`` are seconds since the epoch, ``monotonic`` monotonic seconds.
    ``host`` is the machine's name, ``name`` the origin of its log. ``suspended`` says what officers
    have stopped. ``gauges`` has the values of each gauge of the catalogue, ``doubts`` the problems
    with which the daemon serves nevertheless.
    """

    host: str
    name: str
    now: float
    monotonic: float
    started: float
    reasons: Sequence[str]
    away: Sequence[str]
    suspended: Sequence[str]
    doubts: Sequence[str]
    gauges: Mapping[str, Values]
    workers: Sequence[WorkerStatus]
    samples: Sequence[Sample]
    alarms: Sequence[Alarm]


def page(state: DaemonState) -> str:
    """Returns the page."""
    title = _title(state)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}: {escape(state.host)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="30"><style>{_STYLE}</style></head><body>
{_head(state, title)}
<h2>The last hour</h2>
<div class="charts">{_charts(state)}</div>
<h2>Tokens and workers</h2>
{_workers(state)}
<h2>Now</h2>
{_now(state)}
<h2>Ends within {DUE_DAYS} days</h2>
{_due(state)}
<h2>Last alarms</h2>
{_alarms(state)}
<p class="quiet">What each reason, alarm and alert means, and what to do: docs/runbook.md of this
version.</p>
</body></html>
"""


def _title(state: DaemonState) -> str:
    if state.reasons:
        return "NOT SERVING"
    if any(text.startswith(EVERYTHING_STOPPED) for text in state.suspended):
        return "SUSPENDED"
    return "DEGRADED" if state.away else "SERVING"


def _head(state: DaemonState, title: str) -> str:
    tone = "good" if title == "SERVING" else "bad"
    [(policy,)] = state.gauges["signer_config_info"]
    notes = [*(state.reasons or state.away), *state.suspended, *state.doubts]
    listed = "".join(f'<li class="bad">{escape(note)}</li>' for note in notes)
    return (
        f'<h1>Signer <span class="{tone}">{title}</span></h1>'
        f'<p class="quiet">{escape(state.host)}, log {escape(state.name)}, '
        f"version {escape(__version__)}, "
        f"started {_moment(state.started)}, shown {_moment(state.now)}, policy {policy[:12]}</p>"
        + (f"<ul>{listed}</ul>" if listed else "")
    )


def _charts(state: DaemonState) -> str:
    def line(name: str, factor: float = 1) -> Line:
        """Returns the line of the field ``name`` of the samples, times ``factor``."""
        values = [(state.monotonic - each.time, getattr(each, name)) for each in state.samples]
        return Line(name, [(age, value and value * factor) for age, value in values])

    items = [line("signed"), line("failed")._replace(name="failed or refused")]
    times = [
        line("p50", 1000)._replace(name="p50 (half are faster)"),
        line("p99", 1000)._replace(name="p99 (99 of 100 are faster)"),
    ]
    return chart("Items a second", "a second", items, SPAN_SECONDS) + chart(
        "Time of a SignBatch call", "ms", times, SPAN_SECONDS
    )


def _workers(state: DaemonState) -> str:
    latched = state.gauges["signer_pin_latched"]
    rows = [
        (
            worker.token + (" (PIN latched)" if latched.get((worker.token,)) else ""),
            _toned(worker.state, "good" if worker.state == "serving" else "bad"),
            f"{worker.items:,}",
            f"{worker.starts:,}",
            worker.reason,
        )
        for worker in state.workers
    ]
    return _table(("Token", "Worker", "Items", "Starts", "Reason"), rows)


def _now(state: DaemonState) -> str:
    def value(name: str) -> float:
        return state.gauges[name].get((), 0.0)

    free, low = value("signer_disk_free_bytes"), value("signer_disk_low_bytes")
    disk = f"{size(free)} free; below {size(low)} nothing is signed"
    checkpoint = value("signer_audit_checkpoint_timestamp_seconds")
    states = state.gauges["signer_key_versions"]
    rows = [
        ("Items in the queue", f"{sum(state.gauges['signer_queue_items'].values()):,.0f}"),
        ("Calls in progress", f"{value('signer_calls_at_work'):,.0f}"),
        ("Officers", _officers(state)),
        ("Proposals to approve", f"{value('signer_operations_pending'):,.0f}"),
        ("Key versions", ", ".join(f"{count:,.0f} {name}" for (name,), count in states.items())),
        ("Newest checkpoint", _moment(checkpoint) if checkpoint else "none yet"),
        (
            "Disk of the audit log",
            _toned(disk, "bad" if free < low else "soon" if free < 4 * low else ""),
        ),
    ]
    return _table((), rows)


def _officers(state: DaemonState) -> Html:
    counts = state.gauges["signer_officers"]
    valid, ended = counts.get(("valid",), 0), counts.get(("ended",), 0)
    needed = state.gauges["signer_officers_needed"].get((), 0)
    text = (
        f"{valid:.0f} of {sum(counts.values()):.0f} have a valid certificate;"
        f" operations need {needed:.0f}"
    )
    return _toned(text, "bad" if ended or valid < needed else "")


def _due(state: DaemonState) -> str:
    keys = state.gauges["signer_key_expiry_timestamp_seconds"]
    files = state.gauges["signer_tls_expiry_timestamp_seconds"]
    ended = state.gauges["signer_keys_ended"]
    officers = state.gauges["signer_officer_expiry_timestamp_seconds"]
    officers_ended = state.gauges["signer_officers"].get(("ended",), 0)
    ends = [
        *((end, "next certificate of an officer") for end in officers.values()),
        *((end, f"next key of {_group(group)}") for (group,), end in keys.items()),
        *((end, f"TLS certificate: {name}") for (name,), end in files.items()),
    ]
    rows: list[tuple[str, str, str]] = [
        (f"keys of {_group(group)}", _toned(f"{count:,.0f} ended", "bad"), "")
        for (group,), count in sorted(ended.items())
        if count
    ]
    if officers_ended:
        rows.append(("certificates of officers", _toned(f"{officers_ended:,.0f} ended", "bad"), ""))
    rows += [
        (f"lifetime of a key of {_group(group)}", _used(share), "")
        for (group,), share in sorted(state.gauges["signer_key_lifetime_used_ratio"].items())
        if share >= NEARLY
    ]
    rows += [
        (what, _days((end - state.now) / _DAY), _moment(end))
        for end, what in sorted(ends)
        if end < state.now + DUE_DAYS * _DAY
    ]
    return _table(("What", "Ends in", "On"), rows) if rows else "<p>Nothing.</p>"


def _group(name: str) -> str:
    return f"group {name}" if name else "facilities without a group"


def _days(days: float) -> Html:
    tone = "bad" if days < 0 else "soon" if days < SOON_DAYS else ""
    return _toned(f"{days:,.0f} days", tone)


def _used(share: float) -> Html:
    return _toned(f"{int(share * 100)} % used", "bad" if share >= USED_UP else "soon")


def _alarms(state: DaemonState) -> str:
    rows = [
        (
            _moment(alarm.time),
            alarm.event,
            alarm.text + (f" ({alarm.times} times)" if alarm.times > 1 else ""),
        )
        for alarm in state.alarms
    ]
    return _table(("When", "Event", "What"), rows) if rows else "<p>None since the start.</p>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = _row("th", head) if head else ""
    return f"<table>{top}{''.join(_row('td', row) for row in rows)}</table>"


def _row(tag: str, cells: Sequence[str]) -> str:
    texts = (cell if isinstance(cell, Html) else escape(cell) for cell in cells)
    return f"<tr>{''.join(f'<{tag}>{text}</{tag}>' for text in texts)}</tr>"


def _toned(text: str, tone: str) -> Html:
    return Html(f'<span class="{tone}">{escape(text)}</span>')


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
