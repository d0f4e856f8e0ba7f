"""Streams and fixed sets of (picture, question, answer) from the embedded world."""

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import numpy as np

from auditdm_jax.scenes.language import ALWAYS_ANSWERABLE, SKILLS
from auditdm_jax.scenes.questions import Asker, Question
from auditdm_jax.scenes.render import render
from auditdm_jax.scenes.world import Scene, sample_scene

# Of the unanswerable questions, where there is nonsense at all.
NONSENSE_SHARE = 0.4


class Examples(NamedTuple):
    """images: uint8 [N, 64, 64, 3], scenes and questions: N each; question i is asked of image i."""

    images: np.ndarray
    scenes: list[Scene]
    questions: list[Question]


def scenes_of(split: str, first_seed: int, count: int) -> tuple[list[Scene], np.ndarray]:
    """`count` scenes with consecutive seeds and their pictures, uint8 [count, 64, 64, 3]."""
    scenes = [sample_scene(split, first_seed + i) for i in range(count)]
    return scenes, np.stack([render(scene) for scene in scenes])


def balanced_set(count: int, seed: int = 0, split: str = "test", unanswerable: bool = False) -> Examples:
    """`count` questions in equal numbers over the skills, each of a scene of its own.

    unanswerable: only questions without an answer in their scene, of the skills that know such.
    """
    skills = [skill for skill in SKILLS if not (unanswerable and skill in ALWAYS_ANSWERABLE)]
    scenes: list[Scene] = []
    questions: list[Question] = []
    scene_seed = seed * 1_000_000
    while len(questions) < count:
        scene = sample_scene(split, scene_seed)
        asker = Asker(scene, np.random.default_rng((seed, scene_seed, 7)))  # a stream apart from the scene's own
        scene_seed += 1
        question = asker.ask(skills[len(questions) % len(skills)], split, unanswerable)
        if question is not None:
            scenes.append(scene)
            questions.append(question)
    return Examples(np.stack([render(scene) for scene in scenes]), scenes, questions)


def question_stream(
    seed: int,
    start: int,
    images: int,
    per_image: int,
    distribution: str,
    unanswerable: float = 0.0,
    description: float = 0.0,
    nonsense: range = range(0),
) -> Iterator[tuple[np.ndarray, list[list[Question]]]]:
    """Training batches from number `start` on: uint8 [images, 64, 64, 3] and as many lists of `per_image` questions.

    Batch i depends on (seed, i) alone, so a resumed run goes on exactly where it stopped. In the batches
    `nonsense`, some of the unanswerable questions are nonsense (`Asker.nonsense`).
    """
    for batch, scenes, pictures in scene_batches(seed, start, images):
        rng = np.random.default_rng((seed, batch))
        askers = [Asker(scene, rng) for scene in scenes]
        share = NONSENSE_SHARE if batch in nonsense else 0.0
        settings = (distribution, "train", unanswerable, description, share)
        yield pictures, [[asker.draw(*settings) for _ in range(per_image)] for asker in askers]


def scene_batches(seed: int, start: int, images: int) -> Iterator[tuple[int, list[Scene], np.ndarray]]:
    """Numbered batches of training scenes with their pictures; those of different seeds share none."""
    for batch in count(start):
        yield batch, *scenes_of("train", seed * 100_000_000 + batch * images, images)


class SceneSource:
    """Endless batches of scenes in the manner of `data.ImageSource`, with the scene graphs beside the pictures.

    Yields {"image": uint8 [B, 64, 64, 3], "scene": list, "image_id": list}; the position is a count of batches.
    """

    def __init__(self, split: str, seed: int, batch_size: int):
        self.split, self.batch_size, self.count = split, batch_size, 0
        # Beyond the seeds of the zoo's training scenes.
        self.first = (1000 + seed) * 100_000_000

    def __iter__(self) -> "SceneSource":
        return self

    def __next__(self) -> dict:
        start = self.first + self.count * self.batch_size
        scenes, images = scenes_of(self.split, start, self.batch_size)
        self.count += 1
        ids = [f"{self.split}-{start + i}" for i in range(self.batch_size)]
        return {"image": images, "scene": scenes, "image_id": ids}

    def get_state(self) -> dict:
        return {"count": self.count}

    def set_state(self, state: dict) -> None:
        self.count = int(state["count"])
