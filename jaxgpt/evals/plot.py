"""Line charts and score bars as SVG text: pure functions, no plotting library, nothing to download.

A chart is a string that stands inside an HTML page. Its colours are the page's CSS variables (`--ink`,
`--line`, `--series-0`), so it follows the page into the dark; a fallback stands beside each for an SVG alone.
It carries a `viewBox` and no size, so it fills the column it is put in.

>>> line = Series("training", ((0, 2.0), (1, 1.0)))
>>> chart = line_chart([line], title="Loss", x_label="steps", y_label="nats per token")
>>> chart.startswith("<svg") and chart.endswith("</svg>")
True
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, BAR_WIDTH = 480, 270, 350
LEFT, RIGHT, TOP, BOTTOM = 48, 58, 58, 40  # left for the y numbers, right for the values at the line ends
SERIES = 5  # colours to go round
FALLBACK = ("#2563c9", "#c8601a", "#15866b", "#a23d8f", "#6b7280")
FONT = 'font-family="inherit" font-size="11.5"'
TITLE = 'font-weight="600" font-size="13.5"'
MIDDLE = 'text-anchor="middle"'


@dataclass(frozen=True)
class Series:
    """One line: its name in the legend and its points (x, y), in any order; infinite ones are left out."""

    label: str
    points: tuple[tuple[float, float], ...]
    faint: bool = False  # thin, pale and not in the legend: the raw measurements behind a smoothed line
    colour: int | None = None  # index of the colour; the place in the chart by default


@dataclass(frozen=True)
class Reference:
    """A level to compare with: a dashed line, the region below it shaded."""

    value: float
    label: str


@dataclass(frozen=True)
class Bar:
    """One score: a share of 1 with the ends of its interval."""

    label: str
    value: float
    low: float
    high: float
    colour: int = 0


def nice_ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """The multiples of 1, 2 or 5 times a power of ten that lie in [low, high], about `count` of them.

    Source: Heckbert, "Nice Numbers for Graph Labels", Graphics Gems (1990).

    >>> nice_ticks(0, 10)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        raise ValueError(f"nice_ticks: [{low}, {high}] is no range; low must be below high, both finite")
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if rough <= power * m * (1 + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Digits of the step, so that 3 * 0.1 reads 0.3; adding 0.0 turns -0.0 into 0.0.
    digits = max(0, -math.floor(math.log10(step)))
    return [round(i * step, digits) + 0.0 for i in range(first, last + 1)]


def short_number(value: float) -> str:
    """A number as an axis shows it.

    >>> [short_number(x) for x in (0, 0.25, 40, 1500, 200_000, 1.5e6, 2e9)]
    ['0', '0.25', '40', '1.5k', '200k', '1.5M', '2B']
    """
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


def scale(value: float, domain: tuple[float, float], extent: tuple[float, float]) -> float:
    """Maps `domain` linearly onto `extent`, ends onto ends.

    >>> scale(5, (0, 10), (100, 200))
    150.0
    """
    (d0, d1), (e0, e1) = domain, extent
    return e0 + (value - d0) / (d1 - d0) * (e1 - e0)


def line_chart(
    series: list[Series] | tuple[Series, ...],
    *,
    title: str,
    x_label: str,
    y_label: str,
    reference: Reference | None = None,
    y_range: tuple[float, float] | None = None,
) -> str:
    """A line chart as SVG text; without a single finite point, a chart that says so.

    Args:
      series: lines, in the order of the legend.
      title: what is shown.
      x_label: name of the x axis, with its unit.
      y_label: name of the y axis, with its unit.
      reference: a level to compare with; the axis is widened to hold it.
      y_range: the ends of the y axis; by default they follow the points.
    """
    lines = [(s, _finite(s.points), i if s.colour is None else s.colour) for i, s in enumerate(series)]
    lines = [line for line in lines if line[1]]
    head = _text(LEFT - 40, 16, title, TITLE)
    if not lines:
        note = _text(WIDTH / 2, HEIGHT / 2, "no measurements were written", MIDDLE, muted=True)
        return _svg(title, WIDTH, HEIGHT, [head, note])

    xs = [x for _, points, _ in lines for x, _ in points]
    ys = [y for _, points, _ in lines for _, y in points] + ([reference.value] if reference else [])
    first = 0 if 0 < min(xs) < 0.1 * max(xs) else min(xs)
    x_domain = _domain(first, max(xs), margin=0.0)
    y_domain = y_range or _domain(min(ys), max(ys), margin=0.06)
    x_extent, y_extent = (LEFT, WIDTH - RIGHT), (HEIGHT - BOTTOM, TOP)

    parts = [head, _text(LEFT - 40, 34, y_label, muted=True)]
    if reference:
        parts += _reference(reference, y_domain, y_extent)
    parts += _axes(x_domain, y_domain, x_extent, y_extent, x_label)
    ends = []
    for line, points, colour in lines:
        at = [(scale(x, x_domain, x_extent), scale(y, y_domain, y_extent)) for x, y in points]
        parts.append(_polyline(at, colour, faint=line.faint))
        if not line.faint:
            ends.append((at[-1], points[-1][1], colour))
    parts += _end_values(ends)
    parts += _legend([(line.label, colour) for line, _, colour in lines if not line.faint])
    return _svg(title, WIDTH, HEIGHT, parts)


def bar_chart(bars: list[Bar], *, title: str) -> str:
    """Horizontal bars from 0 to 100% with their intervals as whiskers, as SVG text."""
    head = _text(LEFT - 40, 16, title, TITLE)
    if not bars:
        return _svg(
            title,
            BAR_WIDTH,
            90,
            [head, _text(BAR_WIDTH / 2, 58, "no scores were written", MIDDLE, muted=True)],
        )
    top, row, extent = 34, 25, (76, BAR_WIDTH - 44)
    bottom = top + row * len(bars)
    parts = [head]
    for tick in (0.0, 0.5, 1.0):
        x = scale(tick, (0, 1), extent)
        parts += [_rule(x, top, x, bottom), _text(x, bottom + 18, f"{tick:.0%}", MIDDLE, muted=True)]
    for i, bar in enumerate(bars):
        parts += _bar(bar, top + row * i, row, extent)
    return _svg(title, BAR_WIDTH, bottom + 26, parts)


def interval_chart(bars: list[Bar], *, title: str, x_label: str, reference: float | None = None) -> str:
    """Measurements of any size as dots with their intervals as whiskers, a row each, as SVG text.

    Args:
      bars: rows, from the top.
      title: what is shown.
      x_label: name of the x axis, with its unit.
      reference: a level to compare with: a dashed line.
    """
    head = _text(LEFT - 40, 16, title, TITLE)
    if not bars:
        return _svg(title, WIDTH, 90, [head, _text(WIDTH / 2, 58, "no measurements were written", MIDDLE, muted=True)])
    levels = [reference] if reference is not None else []
    domain = _domain(min([bar.low for bar in bars] + levels), max([bar.high for bar in bars] + levels), margin=0.06)
    top, row, extent = 34, 25, (LEFT + 100, WIDTH - RIGHT)
    bottom, parts = top + row * len(bars), [head]
    for tick in nice_ticks(*domain, count=4):
        x = scale(tick, domain, extent)
        parts += [_rule(x, top, x, bottom), _text(x, bottom + 18, short_number(tick), MIDDLE, muted=True)]
    if reference is not None:
        x = scale(reference, domain, extent)
        parts.append(_rule(x, top, x, bottom, 'stroke="var(--muted, #6b7280)" stroke-dasharray="5 4"'))
    for i, bar in enumerate(bars):
        low, middle, high = (scale(value, domain, extent) for value in (bar.low, bar.value, bar.high))
        y = top + row * (i + 0.5)
        parts += [
            _text(extent[0] - 10, y + 4, bar.label, 'text-anchor="end"', muted=True),
            _rule(low, y, high, y, f'stroke="{_colour(bar.colour)}" stroke-width="1.5"'),
            f'<circle cx="{middle:.2f}" cy="{y:.2f}" r="4" fill="{_colour(bar.colour)}"/>',
            _text(high + 8, y + 4, short_number(bar.value), 'font-weight="600"', halo=True),
        ]
    parts.append(_text(extent[1], bottom + 35, x_label, 'text-anchor="end"', muted=True))
    return _svg(title, WIDTH, bottom + 44, parts)


def panels(charts: list[str], *, columns: int = 2) -> str:
    """Charts in a grid of the page's class `panels`: `columns` (2 or 3) side by side where there is room."""
    figures = "".join(f"<figure>{chart}</figure>" for chart in charts)
    return f'<div class="panels columns-{columns}">{figures}</div>'


def sparkline(values: list[float] | tuple[float, ...], *, width: int = 24) -> str:
    """A curve in eight heights of block characters, for a page that is only text.

    >>> sparkline([0, 1, 2, 3, 4, 5, 6, 7])
    '▁▂▃▄▅▆▇█'
    """
    values = [v for v in values if math.isfinite(v)]
    if not values:
        return ""
    heights = [mean for _, mean in thin(tuple(enumerate(values)), width)]
    low, high = min(heights), max(heights)
    if high == low:
        return "▄" * len(heights)
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * (v - low) / (high - low)))] for v in heights)


def thin(points: tuple[tuple[float, float], ...], most: int) -> tuple[tuple[float, float], ...]:
    """At most `most` points, each the mean of its run of neighbours, the last one x at the curve's true end.

    >>> thin(((0, 1.0), (1, 3.0), (2, 5.0), (3, 7.0)), 2)
    ((1, 2.0), (3, 6.0))
    """
    if len(points) <= most:
        return tuple(points)
    edges = [round(i * len(points) / most) for i in range(most + 1)]
    runs = [points[start:stop] for start, stop in zip(edges, edges[1:])]
    return tuple((run[-1][0], sum(y for _, y in run) / len(run)) for run in runs)


def smooth(points: tuple[tuple[float, float], ...], *, reach: int) -> tuple[tuple[float, float], ...]:
    """Each point's mean over itself and up to `reach` neighbours on both sides.

    At the start, where curves are steep, it takes no more on the right than there are on the left; at the end
    it goes on looking back, so that the last value is no single measurement.

    >>> smooth(((0, 3.0), (1, 0.0), (2, 3.0)), reach=1)
    ((0, 3.0), (1, 2.0), (2, 1.5))
    """
    ys = [y for _, y in points]
    found = []
    for i, (x, _) in enumerate(points):
        left = min(reach, i)
        run = ys[i - left : i + left + 1]
        found.append((x, sum(run) / len(run)))
    return tuple(found)


def _svg(title: str, width: float, height: float, parts: list[str]) -> str:
    label = f'role="img" aria-label="{escape(title)}"'
    box = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
    return f"<svg {box} {label} {FONT}>{''.join(parts)}</svg>"


def _axes(x_domain, y_domain, x_extent, y_extent, x_label) -> list[str]:
    parts = []
    for tick in nice_ticks(*y_domain, count=4):
        y = scale(tick, y_domain, y_extent)
        parts.append(_rule(x_extent[0], y, x_extent[1], y))
        parts.append(_text(x_extent[0] - 8, y + 4, short_number(tick), 'text-anchor="end"', muted=True))
    for tick in nice_ticks(*x_domain, count=5):
        x = scale(tick, x_domain, x_extent)
        parts.append(_text(x, y_extent[0] + 17, short_number(tick), MIDDLE, muted=True))
    return parts + [_text(x_extent[1], y_extent[0] + 34, x_label, 'text-anchor="end"', muted=True)]


def _reference(reference: Reference, y_domain, y_extent) -> list[str]:
    y = scale(reference.value, y_domain, y_extent)
    width, height = WIDTH - LEFT - RIGHT, y_extent[0] - y
    band = (
        f'<rect x="{LEFT}" y="{y:.2f}" width="{width}" height="{height:.2f}" fill="var(--band, #2563c914)"/>'
    )
    name = _text(WIDTH - RIGHT - 4, y - 6, reference.label, 'text-anchor="end"', muted=True, halo=True)
    return [
        band,
        _rule(LEFT, y, WIDTH - RIGHT, y, 'stroke="var(--muted, #6b7280)" stroke-dasharray="5 4"'),
        name,
    ]


def _polyline(at: list[tuple[float, float]], colour: int, *, faint: bool) -> str:
    points = " ".join(f"{x:.2f},{y:.2f}" for x, y in at)
    style = 'stroke-width="1" opacity="0.3"' if faint else 'stroke-width="2"'
    style += ' fill="none" stroke-linejoin="round" stroke-linecap="round"'
    return f'<polyline points="{points}" stroke="{_colour(colour)}" {style}/>'


def _end_values(ends: list[tuple[tuple[float, float], float, int]]) -> list[str]:
    """A dot and the number at the end of each line; numbers that would overlap are moved apart."""
    ends = sorted(ends, key=lambda end: end[0][1])
    places, apart, lowest = [], 13, HEIGHT - BOTTOM
    for (_, y), _, _ in ends:
        places.append(max(y, places[-1] + apart) if places else y)
    places = [min(y, lowest - apart * (len(ends) - 1 - i)) for i, y in enumerate(places)]
    parts = []
    for ((x, y), value, colour), place in zip(ends, places):
        parts.append(f'<circle cx="{x:.2f}" cy="{y:.2f}" r="3" fill="{_colour(colour)}"/>')
        style = f'fill="{_colour(colour)}" font-weight="600"'
        parts.append(_text(x + 7, place + 4, _value(value), style, halo=True))
    return parts


def _value(value: float) -> str:
    return short_number(value) if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _legend(entries: list[tuple[str, int]]) -> list[str]:
    """The names of the lines at the upper right, as one text that any font spaces; one line needs none."""
    if len(entries) < 2:
        return []
    names = (f'<tspan fill="{_colour(colour)}">●</tspan> {escape(label)}' for label, colour in entries)
    ink = 'text-anchor="end" fill="var(--ink, #1c1e21)"'
    return [f'<text x="{WIDTH - 8}" y="34" {ink}>{"&#160;&#160;&#160; ".join(names)}</text>']


def _bar(bar: Bar, y: float, row: float, extent: tuple[float, float]) -> list[str]:
    start, end, low, high = (scale(v, (0, 1), extent) for v in (0.0, bar.value, bar.low, bar.high))
    middle, thick, fill = y + row / 2, row - 9, _colour(bar.colour)
    ink = 'stroke="var(--ink, #1c1e21)" stroke-width="1.2"'
    shape = f'x="{start}" y="{middle - thick / 2}" width="{end - start:.2f}" height="{thick}" rx="2"'
    return [
        _text(start - 10, middle + 4, bar.label, 'text-anchor="end"', muted=True),
        f'<rect {shape} fill="{fill}" opacity="0.85"/>',
        _rule(low, middle, high, middle, ink),
        *(_rule(x, middle - 3.5, x, middle + 3.5, ink) for x in (low, high)),
        _text(max(end, high) + 8, middle + 4, f"{bar.value:.0%}", 'font-weight="600"', halo=True),
    ]


def _text(
    x: float, y: float, text: str, attributes: str = "", *, muted: bool = False, halo: bool = False
) -> str:
    if "fill=" not in attributes:
        attributes += ' fill="var(--muted, #6b7280)"' if muted else ' fill="var(--ink, #1c1e21)"'
    if halo:  # a rim of the ground's colour, so that it can be read across a line
        attributes += (
            ' stroke="var(--surface, #fff)" stroke-width="3" stroke-linejoin="round" paint-order="stroke"'
        )
    return f'<text x="{x:.2f}" y="{y:.2f}" {attributes}>{escape(text)}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float, style: str = 'stroke="var(--line, #e3e5e8)"') -> str:
    return f'<line x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}" {style}/>'


def _colour(index: int) -> str:
    return f"var(--series-{index % SERIES}, {FALLBACK[index % SERIES]})"


def _finite(points) -> list[tuple[float, float]]:
    return sorted((x, y) for x, y in points if math.isfinite(x) and math.isfinite(y))


def _domain(low: float, high: float, *, margin: float) -> tuple[float, float]:
    """The range of an axis: the points' own with a margin, or a unit around a single value."""
    if low == high:
        reach = abs(low) * 0.1 or 0.5
        return low - reach, high + reach
    return low - margin * (high - low), high + margin * (high - low)
