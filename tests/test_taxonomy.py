"""taxonomy.py: failure types counted by hand, and readable labels where no oracle names them."""

import pytest

from auditdm_jax.taxonomy import answer_kind, question_label, rate_of, tally


def test_tally_by_hand():
    names = ["clock/night", "color/small", "clock/night", "clock/night", "shape/any"]
    types = tally(names, [True, True, False, True, False])
    assert [(t.name, t.n, t.failures) for t in types] == [
        ("clock/night", 3, 2),
        ("color/small", 1, 1),
        ("shape/any", 1, 0),
    ]
    # Wilson at 95 % for 2 of 3, and 0 of 1, by hand: centre (p + z2/2n) / (1 + z2/n), z2 = 3.8416
    assert types[0].rate == pytest.approx(2 / 3)
    assert (types[0].ci_low, types[0].ci_high) == pytest.approx((0.2077, 0.9385), abs=1e-4)
    assert (types[2].ci_low, types[2].ci_high) == pytest.approx((0.0, 0.7935), abs=1e-4)


def test_tally_of_nothing_and_unequal_lengths():
    assert tally([], []) == []
    with pytest.raises(ValueError, match="zip"):
        tally(["a", "b"], [True])


def test_rate_without_trials_is_unknown():
    assert rate_of(0, 0) == (0, 0, None, 0.0, 1.0)
    assert rate_of(3, 4)[:3] == (4, 3, 0.75)


@pytest.mark.parametrize(
    ("question", "label"),
    [
        ("How many dogs are there?", "how many"),
        ("In the photo, what color is the car?", "what color"),
        ("Is there a cat?", "is there"),
        ("Is the cat asleep?", "is cat"),
        ("WHERE?", "where"),
        ("", ""),
        ("???", ""),
        ("what \x1b[2Jis it?", "what 2jis"),
    ],
)
def test_question_label(question, label):
    assert question_label(question) == label


def test_question_label_is_short_whatever_is_written():
    assert len(question_label("x" * 10_000)) <= 40


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("Yes.", "yes or no"),
        ("no", "yes or no"),
        ("Two", "number"),
        ("1,000", "number"),
        ("3.5", "number"),
        ("the red one", "other"),
        ("two dogs", "other"),
        ("", ""),
    ],
)
def test_answer_kind(answer, kind):
    assert answer_kind(answer) == kind
