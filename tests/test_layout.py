"""layout.py: which image of a batch goes through which channel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditdm_jax.config import CHANNELS, Probing
from auditdm_jax.errors import UserError
from auditdm_jax.layout import layout, used_by_all

ALL = Probing(channels=CHANNELS, channel_weights=(1, 1, 1), old_questions=0.5)


def test_layout_by_hand():
    shared_out = layout(Probing(channels=("question", "edit"), channel_weights=(3, 1), old_questions=0.5), 8)
    names = [CHANNELS[channel] for channel in shared_out.channels]
    assert names == ["question", "question", "edit", "question", "question", "question", "edit", "question"]
    assert [row for row, old in enumerate(shared_out.old) if old] == [2]
    assert shared_out.through("edit").tolist() == [2, 6]
    assert shared_out.probes("edit", 3).tolist() == [6, 7, 8, 18, 19, 20]


def test_new_images_are_the_smaller_part_by_default():
    """Beside questions: of twelve images ten are asked about as they are, in a small batch fewer, but no channel is
    without an image; every fourth step makes new ones, which are asked new questions. Alone: all do, half old."""
    mixed = Probing(channels=CHANNELS)
    counts = {images: np.bincount(layout(mixed, images).channels).tolist() for images in (3, 4, 12, 24)}
    assert counts == {3: [1, 1, 1], 4: [2, 1, 1], 12: [10, 1, 1], 24: [20, 2, 2]}
    assert (mixed.every, any(layout(mixed, 48).old)) == (4, False)
    alone = Probing(channels=("edit", "caption"))
    assert np.bincount(layout(alone, 8).channels).tolist() == [0, 4, 4]
    assert (alone.every, sum(layout(alone, 8).old)) == (1, 4)
    assert (Probing().every, layout(Probing(), 2).channels) == (1, (0, 0))


def test_spans_by_hand():
    """The images that are asked about at a question's length, the others at the longest of theirs."""
    three = layout(ALL, 5)
    assert [CHANNELS[channel] for channel in three.channels] == ["question", "edit", "caption", "question", "edit"]
    assert three.spans((13, 16, 32)) == (((0, 3), 13), ((1, 2, 4), 32))
    assert three.spans((13, 40, 32)) == (((0, 3), 13), ((1, 2, 4), 40))
    assert layout(Probing(), 2).spans((13, 16, 32)) == (((0, 1), 13),)
    assert layout(Probing(channels=("edit",)), 2).spans((13, 16, 32)) == (((0, 1), 16),)


def test_distinct_images_by_hand():
    distinct, shown = layout(Probing(channels=("question", "edit")), 3).distinct(2)  # question, edit, question
    assert distinct.tolist() == [0, 2, 3, 4]
    assert distinct[shown].tolist() == [0, 0, 2, 3, 4, 4]


@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=3), st.integers(1, 40), st.floats(0, 1))
def test_layout_keeps_the_shares(weights, images, old_questions):
    shared_out = layout(Probing(channels=CHANNELS, channel_weights=tuple(weights), old_questions=old_questions), images)
    for channel, weight in enumerate(weights):
        rows = np.flatnonzero(np.array(shared_out.channels) == channel)
        assert abs(len(rows) - images * weight / sum(weights)) < 2
        old = np.array(shared_out.old)[rows].sum()
        assert old == 0 if CHANNELS[channel] == "question" else abs(old - len(rows) * old_questions) <= 0.5 + 1e-6
    longer = layout(Probing(channels=CHANNELS, channel_weights=tuple(weights), old_questions=old_questions), images + 1)
    assert longer.channels[:images] == shared_out.channels  # a batch cut short has the same shares


def test_a_channel_without_images_is_refused_before_anything_is_loaded():
    probing = Probing(channels=CHANNELS, channel_weights=(14, 1, 1))
    used_by_all(probing, 16)
    with pytest.raises(UserError, match="of 4 images at a time none goes through the channel edit; raise"):
        used_by_all(probing, 4)
