"""Small line charts as SVG text, without scripts or external resources."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 600, 140
_LEFT, _TOP, _BOTTOM = 4, 14, 16
_OUTLIER = 2.0  # times the usual highest value
_STEPS = (1.0, 2.0, 5.0, 10.0, 20.0)  # 20: a logarithm may be slightly too small


class Line(NamedTuple):
    """A line of a chart: pairs of seconds before now and a value, None for no value."""

    name: str
    points: Sequence[tuple[float, float | None]]


def chart(title: str, unit: str, lines: Sequence[Line], span: float) -> str:
    """Returns a figure of the last ``span`` seconds, with the newest and highest values as text."""
    values = [value for line in lines for _, value in line.points if value is not None]
    top = scale(values)
    highest = max(values, default=0.0)
    more = f", highest {_short(highest)}" if highest > top * (1 + 1e-9) else ""
    drawn = "".join(_line(line, place, top, span) for place, line in enumerate(lines))
    words = "; ".join(f"{line.name} {_summary(line, unit)}" for line in lines)
    keys = " ".join(
        f'<span class="key line{place}">{escape(line.name)}: {escape(_summary(line, unit))}</span>'
        for place, line in enumerate(lines)
    )
    label, floor = escape(f"{title}: {words}"), HEIGHT - _BOTTOM
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f'<path class="axis" d="M{_LEFT} {_TOP}H{WIDTH}M{_LEFT} {floor}H{WIDTH}"/>{drawn}'
        f'<text x="{_LEFT}" y="{_TOP - 3}">{top:,g} {escape(unit)}{more}</text>'
        f'<text x="{_LEFT}" y="{HEIGHT - 3}">{span / 60:g} minutes ago</text>'
        f'<text x="{WIDTH}" y="{HEIGHT - 3}" text-anchor="end">now</text>'
        f"</svg><p>{keys}</p></figure>"
    )


def scale(values: Sequence[float]) -> float:
    """Returns the end of the axis for values: a few outliers are cut off, so that the rest is seen.

    Outliers are the highest twentieth of the values, where they are far above the others.
    """
    ordered = sorted(values)
    usual = ordered[len(ordered) - 1 - len(ordered) // 20] if ordered else 0.0
    end = ceiling(max(ordered, default=0.0))
    return min(end, ceiling(_OUTLIER * usual)) if usual else end


def ceiling(value: float) -> float:
    """Returns the end of an axis for a value: 1, 2 or 5 times a power of ten."""
    if value < 1e-9:  # drawn as 0
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in _STEPS if power * step >= value)


def _line(line: Line, place: int, top: float, span: float) -> str:
    """Returns the path of a line, with gaps for missing values."""
    height = HEIGHT - _TOP - _BOTTOM
    parts, drawing = list[str](), False
    for age, value in line.points:
        if value is None or not 0 <= age <= span:
            drawing = False
            continue
        x = WIDTH - (WIDTH - _LEFT) * age / span
        y = HEIGHT - _BOTTOM - height * min(value, top) / top
        at = f"{x:.1f} {y:.1f}"
        parts.append(f"L{at}" if drawing else f"M{at}h0")  # h0: one value is a dot
        drawing = True
    return f'<path class="line{place}" d="{"".join(parts)}"/>' if parts else ""


def _summary(line: Line, unit: str) -> str:
    values = [value for _, value in line.points if value is not None]
    if not values:
        return "no data"
    return f"now {_short(values[-1])}, highest {_short(max(values))} {unit}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
