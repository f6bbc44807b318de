"""Charts as inline SVG: lines, strips and scatters, in light and in dark.

A chart is inline SVG without a single colour of its own. Classes name the series, the page's style sheet
gives them their colours, and every text is escaped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from markupsafe import Markup, escape

Number = int | float
Point = tuple[Number, Number]
WIDTH, HEIGHT = 420, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 34
_MOST_POINTS = 400


@dataclass(frozen=True)
class Series:
    """Points that belong together. Points that are None or not finite are gaps."""

    label: str
    points: Sequence[tuple[Number, Number | None]]
    style: str = "a"
    """a, b, c: the colours of the page; "faint" for what stands behind; "dashed" for what is compared with."""
    dots: bool = False
    intervals: Sequence[tuple[Number, Number]] | None = None
    """Lower and upper end of each point."""


@dataclass(frozen=True)
class Scale:
    """From numbers to places on the page."""

    lowest: Number
    highest: Number
    start: Number
    end: Number

    def __call__(self, number: Number) -> Number:
        """The place of a number."""
        return self.start + (number - self.lowest) / (self.highest - self.lowest) * (self.end - self.start)


@dataclass
class _Drawing:
    """An SVG under way."""

    height: Number = HEIGHT
    parts: list[Markup] = field(default_factory=list)

    def add(self, form: str, *values: object) -> None:
        """Add one element; values are escaped."""
        self.parts.append(Markup(form).format(*values))

    def svg(self, title: str) -> Markup:
        """The whole, with a title for those who cannot see it."""
        return Markup('<svg viewBox="0 0 {} {}" role="img"><title>{}</title>{}</svg>').format(
            WIDTH, self.height, title, Markup("").join(self.parts)
        )


def ticks(lowest: Number, highest: Number, *, about: int = 5) -> list[Number]:
    """Round numbers within a range: multiples of 1, 2 or 5 times a power of ten."""
    rough = (highest - lowest) / about
    power = 10.0 ** math.floor(math.log10(rough))
    size = next(multiple * power for multiple in (1, 2, 5, 10) if multiple * power >= rough * 0.999)
    first = math.ceil(lowest / size - 1e-9)
    return [round(index * size, 12) for index in range(first, math.floor(highest / size + 1e-9) + 1)]


def short_number(number: Number) -> str:
    """A number as a person would write it beside an axis."""
    if number and abs(number) < 1e-3:
        return f"{number:.0e}"
    if abs(number) >= 1e4:
        return f"{number / 1e3:g}k" if abs(number) < 1e6 else f"{number / 1e6:g}M"
    return f"{number:.4g}"


def thinned(points: Sequence[tuple[Number, Number | None]]) -> list[tuple[Number, Number | None]]:
    """At most a few hundred points: means of neighbours where there are more."""
    every = math.ceil(len(points) / _MOST_POINTS)
    if every <= 1:
        return list(points)
    out: list[tuple[Number, Number | None]] = []
    for start in range(0, len(points), every):
        known = [(x, y) for x, y in points[start : start + every] if y is not None and math.isfinite(y)]
        if known:
            out.append((known[-1][0], sum(y for _, y in known) / len(known)))
        else:
            out.append((points[start][0], None))
    return out


def finite_points(points: Sequence[tuple[Number, Number | None]]) -> list[Point]:
    """The points that can be drawn."""
    return [(x, y) for x, y in points if y is not None and math.isfinite(y)]


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str = "steps",
    y_range: tuple[Number | None, Number | None] = (None, None),
    x_range: tuple[Number, Number] | None = None,
    diagonal: bool = False,
    compact: bool = False,
) -> Markup | None:
    """Lines over steps, with a legend where there are several; None if there is nothing to draw.

    Args:
        series: What to draw, the first one lowest.
        title: For those who cannot see the picture.
        x_label: Below.
        y_range: Where the axis begins and ends; None to fit what is drawn.
        x_range: The same for the horizontal axis.
        diagonal: Whether to draw the line y = x.
        compact: Draw for a narrow place: larger letters, fewer marks, no legend.
    """
    drawn = [each for each in series if finite_points(each.points)]
    if not drawn:
        return None
    everything = [point for each in drawn for point in finite_points(each.points)]
    ends = [end for each in drawn for interval in each.intervals or () for end in interval if math.isfinite(end)]
    x_low, x_high = x_range or (min(x for x, _ in everything), max(x for x, _ in everything))
    low = min([y for _, y in everything] + ends) if y_range[0] is None else y_range[0]
    high = max([y for _, y in everything] + ends) if y_range[1] is None else y_range[1]
    if x_high <= x_low:
        x_low, x_high = x_low - 0.5, x_low + 0.5
    if high <= low:
        low, high = (low if y_range[0] is not None else low - 0.5), low + 0.5
    room = 0.06 * (high - low)
    low, high = low - (room if y_range[0] is None else 0), high + (room if y_range[1] is None else 0)
    across = Scale(x_low, x_high, _LEFT, WIDTH - _RIGHT)
    up = Scale(low, high, HEIGHT - _BOTTOM, _TOP)
    drawing = _Drawing()
    _draw_axes(drawing, across, up, x_label=x_label, marks=3 if compact else 5)
    if diagonal:
        a, b = max(x_low, low), min(x_high, high)
        drawing.add('<path class="diagonal" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>', across(a), up(a), across(b), up(b))
    for each in drawn:
        _draw_series(drawing, each, across, up)
    chart = drawing.svg(title)
    if len(drawn) > 1 and not compact:
        chart += legend([(each.style, each.label) for each in drawn])
    return chart


def _draw_axes(drawing: _Drawing, across: Scale, up: Scale, *, x_label: str, marks: int) -> None:
    for y in ticks(up.lowest, up.highest, about=marks):
        drawing.add('<path class="grid" d="M{} {:.1f}H{}"/>', _LEFT, up(y), WIDTH - _RIGHT)
        drawing.add('<text class="y" x="{}" y="{:.1f}">{}</text>', _LEFT - 6, up(y) + 4, short_number(y))
    for x in ticks(across.lowest, across.highest, about=marks):
        drawing.add('<text class="x" x="{:.1f}" y="{}">{}</text>', across(x), HEIGHT - _BOTTOM + 15, short_number(x))
    drawing.add('<text class="x" x="{}" y="{}">{}</text>', (_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 4, x_label)


def _draw_series(drawing: _Drawing, series: Series, across: Scale, up: Scale) -> None:
    intervals = series.intervals or [(math.nan, math.nan)] * len(series.points)
    for (x, _), (lower, upper) in zip(series.points, intervals, strict=True):
        if math.isfinite(lower) and math.isfinite(upper):
            low, high = (up(min(max(end, up.lowest), up.highest)) for end in (lower, upper))
            drawing.add('<path class="bar {}" d="M{:.1f} {:.1f}V{:.1f}"/>', series.style, across(x), low, high)
    path, pen_down = [], False
    points = list(series.points) if series.dots else thinned(series.points)
    for x, y in points:
        if y is None or not math.isfinite(y):
            pen_down = False
            continue
        height = up(min(max(y, up.lowest), up.highest))
        path.append(f"{'L' if pen_down else 'M'}{across(x):.1f} {height:.1f}")
        pen_down = True
    drawing.add('<path class="line {}" d="{}"/>', series.style, "".join(path))
    if series.dots or len(path) == 1:
        for x, y in finite_points(points):
            if not up.lowest <= y <= up.highest:
                continue
            drawing.add(
                '<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3.2"><title>{}: {:.3g}, {:.4g}</title></circle>',
                series.style,
                across(x),
                up(y),
                series.label,
                x,
                y,
            )


def strip_chart(
    rows: Sequence[tuple[str, Sequence[tuple[Number, str]]]], *, title: str, levels: Sequence[str]
) -> Markup | None:
    """For each row which level held from one step to the next; None if there is nothing to draw.

    Args:
        rows: A name, and (step, level) in the order of steps; a level holds until the row's next one.
        title: For those who cannot see the picture.
        levels: All levels in their order; they get the classes `level0`, `level1`, ...
    """
    steps = [step for _, cells in rows for step, _ in cells]
    if not steps:
        return None
    first, last = min(steps), max(steps)
    gaps = [b[0] - a[0] for _, cells in rows for a, b in pairwise(cells)]
    last += min(gaps, default=1.0)
    left, thick = 92, 20
    across = Scale(first, last, left, WIDTH - _RIGHT)
    drawing = _Drawing(height=len(rows) * (thick + 4) + 38)
    for index, (name, cells) in enumerate(rows):
        y = index * (thick + 4)
        shown = name if len(name) <= 14 else name[:13] + "…"
        drawing.add('<text class="y" x="{}" y="{}">{}<title>{}</title></text>', left - 6, y + 14, shown, name)
        for start, end, level in merged(cells, end=last):
            number = levels.index(level) if level in levels else len(levels)
            drawing.add(
                '<rect class="level{}" x="{:.1f}" y="{}" width="{:.1f}" height="{}"><title>{}: {} from step {:g}'
                "</title></rect>",
                number,
                across(start),
                y,
                max(0.4, across(end) - across(start)),
                thick,
                name,
                level,
                start,
            )
    bottom = len(rows) * (thick + 4) + 14
    for x in ticks(first, last):
        drawing.add('<text class="x" x="{:.1f}" y="{}">{}</text>', across(x), bottom, short_number(x))
    drawing.add('<text class="x" x="{}" y="{}">steps</text>', (left + WIDTH - _RIGHT) / 2, bottom + 18)
    came = {level for _, cells in rows for _, level in cells}
    return drawing.svg(title) + legend([(f"level{k}", level) for k, level in enumerate(levels) if level in came])


def merged(cells: Sequence[tuple[Number, str]], *, end: Number) -> list[tuple[Number, Number, str]]:
    """Runs of equal levels as (first step, step where the next run begins, level)."""
    runs: list[tuple[Number, Number, str]] = []
    for index, (step, level) in enumerate(cells):
        until = cells[index + 1][0] if index + 1 < len(cells) else end
        if runs and runs[-1][2] == level:
            runs[-1] = (runs[-1][0], until, level)
        else:
            runs.append((step, until, level))
    return runs


def legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """What each class stands for."""
    shown = (Markup('<li><i class="{}"></i>{}</li>').format(style, label) for style, label in entries)
    return Markup('<ul class="legend">{}</ul>').format(escape(Markup("").join(shown)))
