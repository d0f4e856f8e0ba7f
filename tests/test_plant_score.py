"""plant_score.py: recall, precision, ranks and calibration by hand; only an audit of the planted target is scored."""

import os

import numpy as np
import pytest

from auditdm_jax.errors import UserError
from auditdm_jax.files import read_json, write_json
from auditdm_jax.plant_score import KEY, ScoreConfig, hits, score, score_run, spearman


def kind(name: str, rate: float, n: int = 50, low: float = 0.0, high: float = 1.0) -> dict:
    return {"name": name, "n": n, "rate": rate, "ci_low": low, "ci_high": high}


ANSWERS = {
    "gaps": [kind("clock", 0.8), kind("color/small object", 0.7), kind("concept/red", 0.75)],
    "types": [kind("clock/any", 0.8), kind("sign/any", 0.0), kind("color/small object", 0.7), kind("rare", 0.5, n=9)],
}


def test_a_part_of_a_gap_hits_it_and_a_whole_does_not():
    assert hits("clock", "clock")
    assert hits("clock/sunny background", "clock")
    assert not hits("color", "color/small object")
    assert not hits("color/large object", "color/small object")
    assert not hits("concept/red", "concept/r")


def test_a_score_by_hand():
    types = [
        kind("clock/any", 0.9, low=0.85, high=0.95),
        kind("sign/any", 0.1, low=0.0, high=0.2),
        kind("color/small object", 0.5, low=0.4, high=0.7),
        kind("rare", 1.0),
        kind("unknown", 1.0),
    ]
    result = score(ANSWERS, ["clock/sunny background", "clock/night background", "color", "concept/red"], types)
    assert result["found"] == ["clock", "concept/red"]
    assert result["missed"] == ["color/small object"]
    assert result["false_discoveries"] == ["color"]
    assert result["recall"] == pytest.approx(2 / 3)
    assert result["precision"] == 0.75
    assert (result["types_compared"], result["rank_correlation"]) == (3, pytest.approx(1.0))
    assert result["calibration"] == pytest.approx({"within": 2 / 3, "error": 0.0, "absolute_error": 0.4 / 3})


def test_a_skill_without_conditions_is_compared_by_its_own_name():
    key = {"gaps": [kind("weather", 0.8)], "types": [kind("weather", 0.8)]}
    assert score(key, ["weather"], [kind("weather/any", 0.7)])["types_compared"] == 1


def test_an_audit_that_names_nothing():
    result = score(ANSWERS, [], [])
    assert (result["recall"], result["precision"], result["rank_correlation"]) == (0, None, None)
    assert result["calibration"] is None


def test_rank_correlation_with_a_tie_by_hand():
    x, y = np.array([1.0, 20.0, 20.0, 21.0]), np.array([1.0, 3.0, 2.0, 4.0])  # ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4
    assert spearman(x, y) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert spearman(x, 0 * y) is None


def test_scoring_a_run(tmp_path, capsys):
    target, run = tmp_path / "planted", tmp_path / "run"
    with pytest.raises(UserError, match=f"has no {KEY}"):
        score_run(ScoreConfig(target, run))
    write_json(target / KEY, ANSWERS)
    with pytest.raises(UserError, match="run the command that writes it first"):
        score_run(ScoreConfig(target, run))
    summary = {"models": {"target": str(tmp_path / "." / "planted")}, "failure_types": [kind("sign/any", 0.1)]}
    write_json(run / "audit" / "summary.json", summary)
    with pytest.raises(UserError, match="does not say what was found"):
        score_run(ScoreConfig(target, run))
    write_json(run / "audit" / "summary.json", summary | {"weaknesses": ["clock", "weather"]})
    result = score_run(ScoreConfig(target, run))
    assert read_json(run / "audit" / "planted_score.json") == result
    printed = capsys.readouterr().out
    assert "clock                             0.80 wrong   found" in printed
    assert "concept/red                       0.75 wrong   missed" in printed
    assert "weather                                        false discovery" in printed
    assert "precision                         0.50" in printed
    write_json(run / "audit" / "summary.json", summary | {"weaknesses": [], "models": {"target": "target-s"}})
    with pytest.raises(UserError, match="is of target-s"):
        score_run(ScoreConfig(target, run))
    write_json(run / "audit" / "summary.json", summary | {"weaknesses": []})
    gap = {"name": "clock", "rate": 0.8, "n": 9}
    for key in (
        {"gaps": []},
        {"gaps": [gap | {"rate": None}], "types": []},
        {"gaps": [gap], "types": [gap | {"name": 1}]},
        {"gaps": [gap | {"rate": "0.8"}], "types": [gap]},
        {"gaps": [gap | {"rate": True}], "types": [gap]},
    ):
        write_json(target / KEY, key)
        with pytest.raises(UserError, match="is damaged"):
            score_run(ScoreConfig(target, run))
    write_json(target / KEY, ANSWERS)
    for wrong in (
        {"weaknesses": [1]},
        {"weaknesses": "counting"},
        {"failure_types": [{"name": "a"}]},
        {"failure_types": {}},
    ):
        write_json(run / "audit" / "summary.json", summary | {"weaknesses": []} | wrong)
        with pytest.raises(UserError, match="is damaged"):
            score_run(ScoreConfig(target, run))
    write_json(run / "audit" / "summary.json", summary | {"weaknesses": ["clock", "weather", "weather"]})
    assert score_run(ScoreConfig(target, run))["precision"] == 0.5


def test_a_target_that_was_planted_after_the_audit_is_told(tmp_path, capsys):
    target, run = tmp_path / "planted", tmp_path / "run"
    summary = {"models": {"target": str(target)}, "failure_types": [], "weaknesses": []}
    write_json(target / KEY, ANSWERS)
    write_json(run / "audit" / "summary.json", summary)
    for written, told in ((2, False), (1, False), (3, True)):
        os.utime(target / KEY, (written, written))
        os.utime(run / "audit" / "summary.json", (2, 2))
        score_run(ScoreConfig(target, run))
        assert ("is newer than the audit" in capsys.readouterr().out) == told
