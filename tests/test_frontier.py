"""frontier.py: which cells no other beats, and that the picture can be read back."""

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditdm_jax.compare import t_interval
from auditdm_jax.frontier import COLORS, HEIGHT, WIDTH, frontier_svg, pareto, spread, ticks

SPACE = "{http://www.w3.org/2000/svg}"
few = st.integers(0, 4).map(float)  # small numbers, so that there are ties


def results(**cells):
    """Cells by label with (verified, skills, types) of each seed."""
    names = ("verified", "skills", "types")
    return {
        label: {seed: dict(zip(names, run, strict=True)) for seed, run in enumerate(runs)}
        for label, runs in cells.items()
    }


def panels(picture):
    return ElementTree.fromstring(picture).findall(f"{SPACE}g")


def scales(panel):
    """The functions from pixels to the data, as a reader finds them from two ticks of each axis."""
    texts = panel.findall(f"{SPACE}text")
    x = [(float(t.get("x")), float(t.text)) for t in texts if t.get("y") == str(HEIGHT + 14)]
    y = [(float(t.get("y")) - 4, float(t.text)) for t in texts if t.get("text-anchor") == "end"]
    return (lambda pixel: np.polyval(np.polyfit(*zip(*x, strict=True), 1), pixel)), (
        lambda pixel: np.polyval(np.polyfit(*zip(*y, strict=True), 1), pixel)
    )


def marks(panel, opacity):
    """Color and place, in the data's units, of the marks of one kind."""
    x, y = scales(panel)
    found = []
    for mark in panel.findall(f"{SPACE}polygon"):
        if mark.get("opacity") == opacity:
            corners = np.array([pair.split(",") for pair in mark.get("points").split()], float)
            across, up = corners.mean(0)
            found.append((mark.get("fill"), float(x(across)), float(y(up))))
    return found


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], []),
        ([(1, 1)], [0]),
        ([(1, 3), (2, 2), (3, 1)], [0, 1, 2]),
        ([(1, 1), (2, 2), (0, 3)], [1, 2]),
        ([(1, 3), (2, 2), (1, 2), (2, 2)], [0, 1, 3]),  # equal ones both stay
        ([(2, 1), (1, 1), (2, 0)], [0]),  # as large in one and larger in the other is enough
    ],
)
def test_frontier_by_hand(points, expected):
    assert pareto(points) == expected


@given(st.lists(st.tuples(few, few)))
def test_frontier_dominates_the_others_and_nothing_dominates_it(points):
    def dominated(point, by):
        return any(min(np.subtract(other, point)) >= 0 and max(np.subtract(other, point)) > 0 for other in by)

    on = pareto(points)
    best = [points[index] for index in on]
    assert not any(dominated(point, points) for point in best)
    assert all(dominated(point, best) for index, point in enumerate(points) if index not in on)


def test_ticks_by_hand():
    assert ticks([0.3, 0.72], 0.1, 1.0) == [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    assert ticks([7, 7], 5, math.inf) == [4, 5, 6, 7, 8, 9, 10]
    assert ticks([0, 0], 5, math.inf) == [0, 1, 2, 3, 4, 5]
    assert ticks([1.0], 0.1, 1.0) == [0.95, 0.96, 0.97, 0.98, 0.99, 1.0]
    assert ticks([12, 230], 5, math.inf) == [0, 50, 100, 150, 200, 250]


@given(st.lists(st.floats(0, 1), min_size=1), st.sampled_from([1, 20, 1000]))
def test_ticks_are_few_and_around_all_values(shares, scale):
    values, top = [share * scale for share in shares], 1.0 if scale == 1 else math.inf
    found = ticks(values, 0.1 if scale == 1 else 5, top)
    assert 2 <= len(found) <= 7
    assert 0 <= found[0] <= min(values) + 1e-6 * scale
    assert max(values) - 1e-6 * scale <= found[-1] <= top
    assert scale == 1 or all(tick == int(tick) for tick in found)


def test_bars_by_hand():
    assert spread([0.4, 0.5, 0.6], 1.0) == t_interval([0.4, 0.5, 0.6])
    assert spread([0.0, 0.5, 1.0], 1.0) == (0.0, 1.0)  # no share is beyond them
    assert spread([3, 8], math.inf) == (3, 8)
    assert spread([3], math.inf) == (3, 3)


def test_runs_and_means_are_read_back():
    low, high = [(0.50, 12, 30), (0.56, 14, 33), (0.53, 16, 36)], [(0.70, 4, 9), (0.74, 7, 12)]
    for panel, coverage in zip(panels(frontier_svg(results(a=low, b=high))), (1, 2), strict=True):
        runs = [(COLORS[k], run[coverage], run[0]) for k, cell in enumerate((low, high)) for run in cell]
        means = [(COLORS[0], (14, 33)[coverage - 1], 0.53), (COLORS[1], (5.5, 10.5)[coverage - 1], 0.72)]
        for opacity, expected in (("0.5", runs), ("1.0", means)):
            for (color, x, y), (its_color, its_x, its_y) in zip(marks(panel, opacity), expected, strict=True):
                assert (color, x, y) == (its_color, pytest.approx(its_x, abs=0.1), pytest.approx(its_y, abs=0.002))


def test_bars_and_frontier_are_read_back():
    cells = results(a=[(0.5, 12, 0)] * 2, b=[(0.7, 4, 0), (0.74, 7, 0)], beaten=[(0.4, 5, 0)])
    panel, _ = panels(frontier_svg(cells))
    x, y = scales(panel)
    _, steps, _, bars, _ = (path.get("d") for path in panel.findall(f"{SPACE}path"))
    across, up = bars[1:].split("M")
    start, end = across.split("H")
    assert x(float(start.split(",")[0])) == pytest.approx(4, abs=0.05)
    assert x(float(end)) == pytest.approx(7, abs=0.05)
    start, end = up.split("V")
    assert y(float(start.split(",")[1])) == pytest.approx(0.7, abs=0.001)
    assert y(float(end)) == pytest.approx(0.74, abs=0.001)
    # From the left to b's mean, down, to a's, down; "beaten" is beneath it.
    first, b, a = steps.split("H")
    assert first.startswith("M0,")
    assert y(float(first[3:])) == pytest.approx(0.72, abs=0.001)
    (b_x, a_y), (a_x, bottom) = (map(float, corner.split("V")) for corner in (b, a))
    assert (x(b_x), y(a_y), x(a_x)) == pytest.approx((5.5, 0.5, 12), abs=0.05)
    assert bottom == HEIGHT


def test_everything_is_inside_its_panel():
    for panel in panels(frontier_svg(results(a=[(0.0, 0, 0), (1.0, 20, 90), (0.1, 1, 2)], b=[(1.0, 20, 90)]))):
        for mark in panel.findall(f"{SPACE}polygon"):
            corners = np.array([pair.split(",") for pair in mark.get("points").split()], float)
            assert (corners >= 0).all()
            assert (corners <= (WIDTH, HEIGHT)).all()


def test_the_legend_names_all_cells_safely():
    labels = ["a < b & c", "\x1b[2J", "half \ud800", "cell with nothing yet"]
    cells = dict.fromkeys(labels, results(a=[(0.5, 3, 4)])["a"]) | {labels[-1]: {}}
    root = ElementTree.fromstring(frontier_svg(cells))
    legend = zip(root.findall(f"{SPACE}polygon"), root.findall(f"{SPACE}text")[1:], strict=True)
    assert [(mark.get("fill"), text.text) for mark, text in legend] == list(
        zip(COLORS, ["a < b & c", "\\x1b[2J", "half \\ud800", "cell with nothing yet"], strict=False)
    )


def test_long_labels_have_a_line_each():
    def places(*labels):
        root = ElementTree.fromstring(frontier_svg(dict.fromkeys(labels, results(a=[(0.5, 3, 4)])["a"])))
        found = {(int(text.get("x")), int(text.get("y"))) for text in root.findall(f"{SPACE}text")[1:]}
        assert len(found) == len(labels)
        assert max(y for _, y in found) < int(root.get("viewBox").split()[3])
        return [len(set(coordinates)) for coordinates in zip(*found, strict=True)]

    assert places("a", "b", "c", "d", "e") == [2, 3]
    assert places("a", "b", "c", "d", "e" * 61) == [1, 5]


def test_marks_of_28_cells_differ():
    root = ElementTree.fromstring(frontier_svg({str(k): {} for k in range(27)} | results(last=[(0.5, 3, 4)])))
    looks = set()
    for mark in root.findall(f"{SPACE}polygon"):
        corners = np.array([pair.split(",") for pair in mark.get("points").split()], float)
        looks.add((mark.get("fill"), len(corners), round(np.ptp(corners[:, 0]))))
    assert len(looks) == 28


@pytest.mark.parametrize("cells", [{}, {"a": {}}])
def test_nothing_finished_is_a_sentence(cells):
    root = ElementTree.fromstring(frontier_svg(cells))
    assert [text.text for text in root.findall(f"{SPACE}text")] == ["No run is finished yet."]
    assert not root.findall(f"{SPACE}g")
