"""[host] Learning curves of a sweep as SVG: a panel for each cell, its mean over seeds with the 95 % t interval.

Written by hand: a picture of a few lines needs no library to draw it, and a browser shows it at any size.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from auditdm_jax.compare import FEWEST, is_number, t_interval
from auditdm_jax.errors import one_line
from auditdm_jax.files import read_jsonl

LINES = {"heldout/claimed": ("claimed", "#d55e00"), "heldout/oracle/verified": ("verified", "#0072b2")}
"""Metrics that are drawn, as shares of held-out questions; their names and colors."""
CAPTION = f"held-out images, by step; shaded: 95 % t interval over seeds; thin: single ones of fewer than {FEWEST}"
WIDTH, HEIGHT, GAP, TOP, ACROSS = 220, 130, 50, 40, 4
GREY = "#999999"

Curve = dict[int, list[float]]
"""A metric by step, with a value for each seed."""


def read_curve(runs: Sequence[Path], metric: str) -> Curve:
    """A metric at the steps where all of the runs have a number."""
    rows = [
        {
            row["step"]: row[metric]
            for row in read_jsonl(run / "metrics.jsonl")
            if is_number(row.get(metric)) and "step" in row
        }
        for run in runs
    ]
    steps = set.intersection(*map(set, rows)) if rows else set()
    return {step: [row[step] for row in rows] for step in sorted(steps)}


def svg(cells: Mapping[str, Sequence[Path]]) -> str:
    """The picture. cells: the run folders of each cell, by label; the first one's verified success is grey in all."""
    curves = {label: {metric: read_curve(runs, metric) for metric in LINES} for label, runs in cells.items()}
    last = max((step for cell in curves.values() for curve in cell.values() for step in curve), default=1) or 1
    first = next(iter(curves.values()), {}).get("heldout/oracle/verified", {})
    across = min(ACROSS, len(curves)) or 1
    size = (max(2, across) * (WIDTH + GAP) + GAP, math.ceil(len(curves) / across) * (HEIGHT + TOP + GAP) + GAP)
    parts = [sheet(*size)]
    keys = [*LINES.values(), ("verified, first cell", GREY)]
    for number, (name, color) in enumerate(keys):
        parts.append(f'<text x="{GAP + 90 * number}" y="20" fill="{color}">{name}</text>')
    parts.append(f'<text x="{GAP}" y="38">{CAPTION}</text>')
    for number, (label, cell) in enumerate(curves.items()):
        place = (GAP + number % across * (WIDTH + GAP), TOP + GAP + number // across * (HEIGHT + TOP + GAP))
        drawn = [_line([(step, float(np.mean(values))) for step, values in first.items()], GREY, last)]
        for metric, (_, color) in LINES.items():
            drawn += _curve(cell[metric], color, last)
        parts.append(f'<g transform="translate({place[0]} {place[1]})">{_frame(label, last)}{"".join(drawn)}</g>')
    return "\n".join([*parts, "</svg>\n"])


def sheet(width: int, height: int) -> str:
    """The beginning of a picture of that size: its font, and white paper."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>'
    )


def box(width: int, height: int) -> str:
    """The outline of a panel."""
    return f'<rect width="{width}" height="{height}" fill="none" stroke="#cccccc"/>'


def _curve(curve: Curve, color: str, last: int) -> list[str]:
    """Mean and interval, or the single seeds where they are too few for one."""
    if not curve:
        return []
    mean = [(step, float(np.mean(values))) for step, values in curve.items()]
    if any(len(values) < FEWEST for values in curve.values()):
        seeds = zip(*curve.values(), strict=True)
        single = [_line(list(zip(curve, seed, strict=True)), color, last, 0.5) for seed in seeds]
        return [*single, _line(mean, color, last)]
    intervals = {step: t_interval(values) for step, values in curve.items()}
    outline = [(step, low) for step, (low, _) in intervals.items()]
    outline += [(step, high) for step, (_, high) in reversed(intervals.items())]
    band = f'<polygon points="{_points(outline, last)}" fill="{color}" opacity="0.2"/>'
    return [band, _line(mean, color, last)]


def _frame(label: str, last: int) -> str:
    """A panel's box, ticks and title."""
    parts = box(WIDTH, HEIGHT)
    for share in (0, 0.5, 1):
        parts += f'<text x="-4" y="{(1 - share) * HEIGHT + 4}" text-anchor="end">{share}</text>'
    parts += f'<text y="{HEIGHT + 14}">0</text><text x="{WIDTH}" y="{HEIGHT + 14}" text-anchor="end">{last}</text>'
    title = textwrap.wrap(one_line(label, 80), 38)
    for number, line in enumerate(reversed(title)):
        parts += f'<text y="{-6 - 13 * number}">{escape(line)}</text>'
    return parts


def _line(points: Sequence[tuple[int, float]], color: str, last: int, width: float = 1.5) -> str:
    return f'<polyline points="{_points(points, last)}" fill="none" stroke="{color}" stroke-width="{width}"/>'


def _points(points: Sequence[tuple[int, float]], last: int) -> str:
    """Steps and shares in a panel's pixels; an interval beyond [0, 1] is cut off there."""
    return " ".join(f"{step / last * WIDTH:.1f},{(1 - min(1, max(0, y))) * HEIGHT:.1f}" for step, y in points)
