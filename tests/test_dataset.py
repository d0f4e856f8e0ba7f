"""scenes/dataset.py: streams that go on exactly where they stopped, and seeds that share no scene."""

import json
from itertools import combinations, islice

import numpy as np
import pytest

from auditdm_jax.scenes import dataset
from auditdm_jax.scenes.language import UNCLEAR
from auditdm_jax.scenes.oracle import judge
from auditdm_jax.scenes.render import render
from auditdm_jax.scenes.world import SPLITS, Scene, sample_scene, split_of

SETTINGS = {"images": 3, "per_image": 4, "distribution": "uniform", "unanswerable": 0.3, "description": 0.2}


def same_batch(a: dict, b: dict) -> bool:
    return np.array_equal(a["image"], b["image"]) and a["scene"] == b["scene"] and a["image_id"] == b["image_id"]


@pytest.mark.parametrize("split", SPLITS)
def test_a_source_resumes_exactly(split):
    source = dataset.SceneSource(split, seed=3, batch_size=4)
    skipped = [next(source) for _ in range(3)]
    state = json.loads(json.dumps(source.get_state()))  # as a checkpoint keeps it
    expected = [next(source) for _ in range(2)]

    resumed = dataset.SceneSource(split, seed=3, batch_size=4)
    resumed.set_state(state)
    found = list(islice(resumed, 2))
    assert all(same_batch(a, b) for a, b in zip(expected, found, strict=True))
    assert resumed.get_state() == source.get_state()
    ids = [name for batch in skipped + found for name in batch["image_id"]]
    assert len(set(ids)) == 5 * 4


def test_a_source_yields_pictures_of_its_scenes():
    batch = next(dataset.SceneSource("validation", seed=0, batch_size=5))
    assert batch["image"].shape == (5, 64, 64, 3)
    assert batch["image"].dtype == np.uint8
    for picture, scene, name in zip(batch["image"], batch["scene"], batch["image_id"], strict=True):
        assert np.array_equal(picture, render(scene))
        assert split_of(scene) == "validation"
        split, seed = name.split("-")
        assert sample_scene(split, int(seed)) == scene  # the name alone draws it again


def test_the_question_stream_resumes_exactly():
    whole = list(islice(dataset.question_stream(4, 0, **SETTINGS), 5))
    resumed = list(islice(dataset.question_stream(4, 3, **SETTINGS), 2))
    for (pictures, questions), (same_pictures, same_questions) in zip(whole[3:], resumed, strict=True):
        assert np.array_equal(pictures, same_pictures)
        assert questions == same_questions
    assert whole[3][1] != whole[4][1]


def test_questions_are_asked_of_the_picture_beside_them():
    batches = list(islice(dataset.question_stream(2, 0, **SETTINGS), 6))
    for number, (pictures, questions) in enumerate(batches):
        scenes, expected = dataset.scenes_of("train", 200_000_000 + 3 * number, 3)
        assert np.array_equal(pictures, expected)
        for scene, row in zip(scenes, questions, strict=True):
            assert len(row) == 4
            for question in row:
                verdict = judge(question.text, scene)
                if question.skill != "description":
                    assert (verdict.answer or UNCLEAR) == question.answer
    every = [question for _, questions in batches for row in questions for question in row]
    assert {UNCLEAR, "description"} <= {word for question in every for word in question}


def stream_scenes(seed: int, count: int) -> set[bytes]:
    """Pictures stand for their scenes: everything in a scene shows."""
    stream = dataset.question_stream(seed, 0, 10, 1, "natural")
    return {picture.tobytes() for pictures, _ in islice(stream, count) for picture in pictures}


def test_no_scene_is_shared_between_seeds_or_with_the_test_set():
    def audited(split: str, seed: int) -> set[bytes]:
        source = dataset.SceneSource(split, seed, batch_size=10)
        return {picture.tobytes() for batch in islice(source, 3) for picture in batch["image"]}

    groups = [stream_scenes(seed, 3) for seed in (1, 2, 7)]
    groups += [audited(split, seed) for split in SPLITS for seed in (0, 1)]
    groups += [{picture.tobytes() for picture in dataset.balanced_set(30, seed).images} for seed in (0, 1)]
    assert all(len(group) == 30 for group in groups)
    assert not any(a & b for a, b in combinations(groups, 2))


def test_a_test_set_is_a_function_of_its_arguments():
    first, again = dataset.balanced_set(20, seed=5), dataset.balanced_set(20, seed=5)
    assert np.array_equal(first.images, again.images)
    assert (first.scenes, first.questions) == (again.scenes, again.questions)
    assert dataset.balanced_set(20, seed=5, split="validation").questions != first.questions
    # A larger set begins with the smaller one: a quick look and the full figure agree on what they share.
    assert dataset.balanced_set(40, seed=5).questions[:20] == first.questions


def test_consecutive_seeds_make_consecutive_scenes():
    scenes, pictures = dataset.scenes_of("train", 10, 4)
    assert scenes == [sample_scene("train", seed) for seed in (10, 11, 12, 13)]
    assert isinstance(scenes[0], Scene)
    assert np.array_equal(pictures[2], render(scenes[2]))


def test_nonsense_comes_in_its_batches_only():
    batches = list(islice(dataset.question_stream(2, 0, **SETTINGS, nonsense=range(20, 40)), 50))
    skills = [{question.skill for row in questions for question in row} for _, questions in batches]
    assert not any("nonsense" in met for met in skills[:20])
    assert any("nonsense" in met for met in skills[20:40])
    assert not any("nonsense" in met for met in skills[40:])
    plain = list(islice(dataset.question_stream(2, 0, **SETTINGS), 20))
    assert [questions for _, questions in plain] == [questions for _, questions in batches[:20]]
