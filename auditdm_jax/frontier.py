"""[host] What a sweep's cells gain in success and what in coverage, as SVG: a mark for each run, a large one a cell.

The line bounds what the cells' means reach: on it are those that no other cell beats in both (the Pareto frontier). It
looks at means alone; `compare.py` says which differences are larger than seed noise. The picture is written by hand,
like `curves.py`'s.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

import numpy as np

from auditdm_jax.compare import FEWEST, Result, t_interval
from auditdm_jax.curves import GAP, GREY, box, sheet
from auditdm_jax.errors import one_line
from auditdm_jax.summary import ENOUGH

COVERAGES = {"skills": "skills", "types": "failure types"}
"""Measures that are drawn from left to right, a panel each, and their names."""
CAPTION = (
    f"large: mean of a cell with its 95 % t interval (range of fewer than {FEWEST} seeds); small: its runs; line: "
    "means that no other cell beats in both"
)
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
SHAPES = ((24, 0.0, 1.0), (4, 0.5, 1.2), (3, 0.0, 1.3), (4, 0.0, 1.2))
"""Of marks, as (corners, turn by this share of a corner, size that looks alike): circle, square, triangle, diamond."""
WIDTH, HEIGHT, PAD, TOP, ROW, BOTTOM = 375, 260, 12, 40, 17, 56
LONG = 60
"""Characters of a label that fit into half the width."""


class Axis(NamedTuple):
    """Ticks in the data's unit, and the pixels of the first and of the last of them."""

    ticks: Sequence[float]
    start: float
    end: float

    def pixel(self, value: float) -> float:
        share = (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])
        return self.start + share * (self.end - self.start)


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other dominates, that is, is at least as large in both and larger in one.

    (1, 3), (2, 2), (1, 2), (2, 2) -> 0, 1, 3: equal points do not dominate each other.
    """
    return [
        index
        for index, (x, y) in enumerate(points)
        if not any(other_x >= x and other_y >= y and (other_x, other_y) != (x, y) for other_x, other_y in points)
    ]


def ticks(values: Sequence[float], least: float, top: float) -> list[float]:
    """At most 7 multiples of 1, 2 or 5 times a power of ten, from below all values (>= 0, <= top) to above them.

    least: how much they span at least, lest noise fill the picture; of 5 or more the ticks are whole.
    """
    low, high = min(values), max(values)
    if high - low < least:
        low = max(0.0, (low + high - least) / 2)
        high = min(top, low + least)
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= raw * (1 - 1e-9))
    # Rounded first: 0.3 / 0.1 is a little less than 3.
    first, last = math.floor(round(low / step, 6)), math.ceil(round(high / step, 6))
    return [round(number * step, 9) for number in range(first, last + 1)]


def spread(values: Sequence[float], top: float) -> tuple[float, float]:
    """95 % t interval of the mean, cut off at 0 and `top`; the range of fewer than `FEWEST` values."""
    low, high = t_interval(values) if len(values) >= FEWEST else (min(values), max(values))
    return max(0.0, low), min(top, high)


def frontier_svg(results: Mapping[str, Mapping[int, Result]]) -> str:
    """The picture. results: the audits by cell and seed, as for `compare.table`."""
    cells = [[*runs.values()] for runs in results.values()]
    labels = [one_line(label, 2 * LONG) for label in results]
    columns = 2 if all(len(label) <= LONG for label in labels) else 1
    rows = math.ceil(len(cells) / columns)
    width, below = 2 * WIDTH + 3 * GAP, TOP + HEIGHT + BOTTOM
    if not any(cells):
        return f'{sheet(width, TOP)}<text x="{GAP}" y="20">No run is finished yet.</text></svg>\n'
    parts = [sheet(width, below + rows * ROW), f'<text x="{GAP}" y="20">{CAPTION}</text>']
    for number, coverage in enumerate(COVERAGES):
        place = f"translate({GAP + number * (WIDTH + GAP)} {TOP})"
        parts.append(f'<g transform="{place}">{_panel(cells, coverage)}</g>')
    for number, label in enumerate(labels):
        x, y = GAP + number // rows * (WIDTH + GAP), below + number % rows * ROW
        parts.append(f'{_mark(number, x + 5, y - 4, 5)}<text x="{x + 16}" y="{y}">{escape(label)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _panel(cells: Sequence[Sequence[Result]], coverage: str) -> str:
    """One coverage's axes, frontier and marks."""
    drawn = [(k, [r[coverage] for r in runs], [r["verified"] for r in runs]) for k, runs in enumerate(cells) if runs]
    x = Axis(ticks([v for _, xs, _ in drawn for v in (*xs, *spread(xs, math.inf))], 5, math.inf), PAD, WIDTH - PAD)
    y = Axis(ticks([v for *_, ys in drawn for v in (*ys, *spread(ys, 1.0))], 0.1, 1.0), HEIGHT - PAD, PAD)
    means = [(float(np.mean(xs)), float(np.mean(ys))) for _, xs, ys in drawn]
    parts = [_axes(x, y, COVERAGES[coverage]), _steps([means[index] for index in pareto(means)], x, y)]
    for (number, xs, ys), (a, b) in zip(drawn, means, strict=True):
        (left, right), (low, high) = map(x.pixel, spread(xs, math.inf)), map(y.pixel, spread(ys, 1.0))
        bars = f"M{left:.1f},{y.pixel(b):.1f}H{right:.1f}M{x.pixel(a):.1f},{low:.1f}V{high:.1f}"
        parts.append(f'<path d="{bars}" stroke="{COLORS[number % len(COLORS)]}"/>')
        parts += [_mark(number, x.pixel(u), y.pixel(v), 2.5, 0.5) for u, v in zip(xs, ys, strict=True)]
    # After all bars, which would hide some of them.
    parts += [_mark(number, x.pixel(a), y.pixel(b), 5) for (number, *_), (a, b) in zip(drawn, means, strict=True)]
    return "".join(parts)


def _axes(x: Axis, y: Axis, name: str) -> str:
    """The box, a grid at the ticks, and what is shown."""
    grid = "".join(f"M{x.pixel(tick):.1f},0V{HEIGHT}" for tick in x.ticks)
    grid += "".join(f"M0,{y.pixel(tick):.1f}H{WIDTH}" for tick in y.ticks)
    parts = f'<path d="{grid}" stroke="#eeeeee"/>{box(WIDTH, HEIGHT)}'
    for tick in x.ticks:
        parts += f'<text x="{x.pixel(tick):.1f}" y="{HEIGHT + 14}" text-anchor="middle">{tick:g}</text>'
    for tick in y.ticks:
        parts += f'<text x="-4" y="{y.pixel(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
    title = f"{name} with {ENOUGH} or more verified failures"
    parts += f'<text x="{WIDTH / 2}" y="{HEIGHT + 30}" text-anchor="middle">{title}</text>'
    parts += f'<text transform="rotate(-90)" x="{-HEIGHT / 2}" y="-32" text-anchor="middle">verified success</text>'
    return parts


def _steps(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> str:
    """The bound of what is no better than some of the points, from the left of the panel to its bottom."""
    path = ""
    for a, b in sorted(points):
        path += f"{'V' if path else 'M0,'}{y.pixel(b):.1f}H{x.pixel(a):.1f}"
    # Wider than the bars, which lie on it.
    return f'<path d="{path}V{HEIGHT}" fill="none" stroke="{GREY}" stroke-width="3" opacity="0.5"/>'


def _mark(number: int, x: float, y: float, radius: float, opacity: float = 1.0) -> str:
    """The mark of a cell at a pixel; of the first 28 cells no two are alike in color and shape."""
    corners, turn, size = SHAPES[number % len(SHAPES)]
    angles = [math.tau * (corner + turn) / corners for corner in range(corners)]
    radius *= size
    points = " ".join(f"{x + radius * math.sin(a):.1f},{y - radius * math.cos(a):.1f}" for a in angles)
    look = f'fill="{COLORS[number % len(COLORS)]}" stroke="white" stroke-width="0.6"'
    return f'<polygon points="{points}" {look} opacity="{opacity}"/>'
