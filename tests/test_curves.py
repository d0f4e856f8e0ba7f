"""curves.py: points where they belong, a panel for each cell."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from auditdm_jax.compare import t_interval
from auditdm_jax.curves import HEIGHT, WIDTH, read_curve, svg
from auditdm_jax.files import append_jsonl

SPACE = "{http://www.w3.org/2000/svg}"


def run(folder, values):
    """A run's metrics, with rows between that have no probe."""
    for step, value in values.items():
        append_jsonl(folder / "metrics.jsonl", {"step": step, "heldout/claimed": value, "heldout/oracle/verified": 0})
        append_jsonl(folder / "metrics.jsonl", {"step": step + 1, "loss": 0.0})
    return folder


@pytest.fixture
def runs(tmp_path):
    return [run(tmp_path / str(seed), {0: 0.1, 50: 0.2 + seed / 8}) for seed in range(3)]


def points(element):
    return [tuple(map(float, pair.split(","))) for pair in element.get("points").split()]


def test_only_steps_that_all_runs_have(runs, tmp_path):
    longer = run(tmp_path / "longer", {0: 0.0, 50: 0.5, 100: 0.9})
    assert read_curve([*runs, longer], "heldout/claimed") == {0: [0.1, 0.1, 0.1, 0.0], 50: [0.2, 0.325, 0.45, 0.5]}


def test_what_is_no_number_is_not_drawn(runs, tmp_path):
    append_jsonl(tmp_path / "0" / "metrics.jsonl", {"step": 50, "heldout/claimed": None})
    odd = run(tmp_path / "odd", {0: 0.0, 50: None})
    assert read_curve([*runs, odd], "heldout/claimed") == {0: [0.1, 0.1, 0.1, 0.0]}
    ElementTree.fromstring(svg({"a": [*runs, odd]}))


def test_mean_and_interval_are_drawn(runs):
    root = ElementTree.fromstring(svg({"a < b": runs}))
    (panel,) = root.findall(f"{SPACE}g")
    assert "a < b" in [text.text for text in panel.findall(f"{SPACE}text")]
    _, claimed, _ = panel.findall(f"{SPACE}polyline")  # after the first cell's
    np.testing.assert_allclose(points(claimed), [(0, 0.9 * HEIGHT), (WIDTH, (1 - 0.325) * HEIGHT)], atol=0.06)
    band = points(panel.find(f"{SPACE}polygon"))
    low, high = t_interval([0.2, 0.325, 0.45])
    np.testing.assert_allclose(band[1:3], [(WIDTH, (1 - low) * HEIGHT), (WIDTH, (1 - high) * HEIGHT)], atol=0.06)


def test_too_few_seeds_are_drawn_one_by_one(runs):
    root = ElementTree.fromstring(svg({"a": runs[:2], "b": runs[1:], "c": []}))
    panels = root.findall(f"{SPACE}g")
    assert len(panels) == 3
    assert not root.findall(f".//{SPACE}polygon")
    # The first cell's, then of two metrics two seeds and their mean; nothing of a cell without runs but that.
    assert [len(panel.findall(f"{SPACE}polyline")) for panel in panels] == [7, 7, 1]


def test_nothing_finished_is_an_empty_picture():
    assert not ElementTree.fromstring(svg({})).findall(f"{SPACE}g")
