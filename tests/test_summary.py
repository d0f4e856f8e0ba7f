"""summary.py: rates over all images, types over answerable questions, and a table that is safe to print."""

import re

import pytest

from auditdm_jax.outcomes import OUTCOMES, UNREAD, Answers, Asked, Examined, examine
from auditdm_jax.summary import report_lines, success, summarize


def rows(outcome: str, count: int, skill: str = "color", condition: str = "small", verified: bool = False):
    answerable = outcome not in ("empty", "overlong", "unparsable")
    row = Examined("", "", "", (), "", "", "", skill, condition, outcome, verified, answerable)
    return [row] * count


def described(summary: dict, trained: bool = True) -> str:
    return "\n".join(report_lines(summary | {"auditor": {"trained": trained}, "verified_by": "oracle"}, top=2))


def test_success_is_a_share_of_all_images():
    result = success(
        [*rows("claimed", 2, verified=True), *rows("claimed", 1), *rows("agreed", 3), *rows("unparsable", 4)]
    )
    assert (result["images"], result["answerable"]) == (10, 6)
    assert (result["claimed_success_rate"], result["verified_success_rate"]) == (0.3, 0.2)
    assert result["verified"] == pytest.approx(
        {"n": 10, "count": 2, "rate": 0.2, "ci_low": 0.0567, "ci_high": 0.5098}, abs=1e-4
    )
    assert list(result["outcomes"]) == list(OUTCOMES)
    assert sum(result["outcomes"].values()) == 10


def test_types_and_skills_count_questions_with_an_answer():
    summary = summarize(
        [
            *rows("claimed", 9, "clock", "night", verified=True),
            *rows("claimed", 1, "clock", "sunny", verified=True),
            *rows("agreed", 10, "color", "small"),
            *rows("unparsable", 5, "", ""),
        ],
        [*rows("claimed", 1, verified=True), *rows("agreed", 9)],
    )
    found = [(t["name"], t["failures"], t["n"]) for t in summary["failure_types"]]
    assert found == [("clock/night", 9, 9), ("clock/sunny", 1, 1), ("color/small", 0, 10)]
    assert [(s["name"], s["failures"]) for s in summary["skills"]] == [("clock", 10), ("color", 0)]
    assert summary["skills_found"] == 1
    assert summary["verified_gain"] == pytest.approx((10 / 25) / (1 / 10))


def test_an_image_that_nobody_could_read_is_no_type():
    summary = summarize(rows("claimed", 20, "clock", UNREAD, verified=True), [])
    assert (summary["failure_types"], summary["weaknesses"], summary["saturation"]["types"]["n"]) == ([], [], 0)
    assert (summary["skills_found"], summary["new_images_not_read"]) == (1, 20)


def test_no_gain_over_nothing():
    summary = summarize(rows("claimed", 3, verified=True), rows("agreed", 3))
    assert summary["verified_gain"] is None
    assert "times" not in described(summary)
    assert re.search(r"prompt-only +0 +- +-\n", described(summarize([], []), trained=False))


def test_the_table_lists_types_by_rate_and_leaves_out_rare_ones():
    summary = summarize(
        [
            *rows("claimed", 6, "often", "x", verified=True),
            *rows("agreed", 14, "often", "x"),
            *rows("claimed", 5, "rather", "x", verified=True),
            *rows("agreed", 5, "rather", "x"),
            *rows("agreed", 10, "never", "x"),
            *rows("claimed", 1, "once", "x", verified=True),
        ],
        rows("agreed", 1),
    )
    printed = described(summary)
    assert "failure types by rate, 2 of 4; those of fewer than 10 questions are in summary.json" in printed
    assert printed.index("rather/x") < printed.index("often/x")
    assert "once/x" not in printed
    assert "never/x" not in printed


def test_names_cannot_command_the_terminal():
    hostile = "\x1b[2J\u202e\r\n" + "x" * 500
    printed = described(summarize(rows("claimed", 10, hostile, hostile, verified=True), rows("agreed", 1)))
    assert not {"\x1b", "\u202e", "\r"} & set(printed)
    assert max(map(len, printed.splitlines())) < 110


def edited(outcome: str, original_target: str = "red", original_consensus: str = "red", consensus: str = "red"):
    """An edited image with an old question of which the references say `consensus`."""
    said = {"agreed": consensus, "claimed": "blue", "target_unanswered": "unclear"}[outcome]
    asked = Asked("1", "what color is the star?", channel="edit", written="make the ring blue", old=True)
    row = examine(asked, Answers(said, (consensus,), consensus), 1.0)
    assert row.outcome == outcome
    return row._replace(original_consensus=original_consensus, original_target_answer=original_target)


def test_sensitivity_counts_edits_that_leave_the_answer_as_it_was():
    rows = [
        edited("agreed"),
        edited("claimed"),
        edited("target_unanswered"),
        edited("claimed", original_target="blue"),  # it was wrong before the edit
        edited("claimed", original_consensus="green"),  # the edit concerned the question
        edited("claimed", original_consensus=""),  # nobody knows what was true of the original
    ]
    assert [row.comparable for row in rows] == [True] * 3 + [False] * 3
    assert [row.flipped for row in rows] == [False, True, True, False, False, False]
    summary = summarize(rows, rows[:4])
    assert (summary["sensitivity"]["count"], summary["sensitivity"]["n"]) == (2, 3)
    assert summary["sensitivity"]["prompt_only"]["n"] == 3
    assert summary["channels"]["edit"]["images"] == 6
    assert list(summary["channels"]) == ["edit"]
