"""scenes/zoo.py: what a member is taught, batch by batch, and that a resumed training goes on exactly."""

from dataclasses import replace
from itertools import islice

import jax
import numpy as np
import pytest
from tiny_zoo import SMALL

from auditdm_jax.scenes.members import MEMBERS, Member, new_model
from auditdm_jax.scenes.zoo import batches

LESSONS = dict(steps=8, unanswerable=0.2, images=2, questions=4, description=0.2)
ANSWERS = Member("a", "paligemma", seed=1, **SMALL | LESSONS)
ASKS = replace(ANSWERS, family="gemma3", distribution="natural", asks=True, steps=9)


@pytest.mark.parametrize("member", [ANSWERS, ASKS])
@pytest.mark.parametrize("start", [1, 4, 5, 7])
def test_batches_resume_exactly(member, start):
    vlm = new_model(member)
    whole = list(islice(batches(vlm, member, 0), 9))
    resumed = list(islice(batches(vlm, member, start), 9 - start))
    for expected, found in zip(whole[start:], resumed, strict=True):
        assert jax.tree.structure(expected) == jax.tree.structure(found)
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_auditor_first_answers_in_turn_and_then_only_asks():
    vlm = new_model(ASKS)
    widths = [batch.ids.shape[-1] for batch in islice(batches(vlm, ASKS, 0), 9)]
    answering, asking = widths[0], widths[1]
    assert answering != asking
    assert widths == [answering, asking] * 3 + [asking] * 3
    # A question that it asks is the answer to an instruction: nothing of the prompt is learned.
    batch = list(islice(batches(vlm, ASKS, 0), 2))[1]
    learned = np.asarray(batch.ids)[0, 0][np.asarray(batch.answer_mask)[0, 0]]
    assert "?" in vlm.tokenizer.decode(learned)


def test_no_two_members_share_a_seed():
    assert len({member.seed for member in MEMBERS.values()}) == len(MEMBERS)
