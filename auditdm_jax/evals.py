"""Answers of a model to many questions, and its accuracy by skill with intervals."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Bool, Int
from tqdm import tqdm

from auditdm_jax.answers import normalize
from auditdm_jax.config import TrainConfig
from auditdm_jax.models.vlm import VLM
from auditdm_jax.prompts import fill, padded, template_for, texts_of
from auditdm_jax.rollout import ask

_filled = jax.jit(fill, static_argnames=("template", "pad_id"))  # one program, not one for each of its operations


class Answerer:
    """Answers in compiled batches of one shape; a list with a longer question has one of its own. Images of
    another size than the model's are resampled on the device."""

    def __init__(self, vlm: VLM, max_question_tokens: int = 16, max_new_tokens: int = 3, batch_size: int = 256):
        self.vlm, self.template = vlm, template_for(vlm)
        self.max_question, self.max_new, self.batch_size = max_question_tokens, max_new_tokens, batch_size

    @classmethod
    def of_run(cls, vlm: VLM, auditor: VLM, settings: TrainConfig, batch_size: int = 256) -> "Answerer":
        """One that takes the longest question the run's auditor may ask, and gives answers of the run's length."""
        # Another vocabulary may cut the same words finer.
        finer = 1 if vlm.tokenizer.get_vocab() == auditor.tokenizer.get_vocab() else 2
        return cls(vlm, finer * settings.max_question_tokens, settings.max_answer_tokens, batch_size)

    def __call__(
        self, images: np.ndarray, questions: Sequence[str], progress: str = "", shown: np.ndarray | None = None
    ) -> list[str]:
        """images: uint8 [N, H, W, 3]; questions: N strings. N greedy answers. shown: number of the image that each
        question is about, where several are about one."""
        return [answer for (answer,) in self.answers(images, questions, 1, 0.0, progress=progress, shown=shown)]

    def answers(
        self,
        images: np.ndarray,
        questions: Sequence[str],
        count: int,
        temperature: float,
        *,
        seed: int = 0,
        progress: str = "",
        shown: np.ndarray | None = None,
    ) -> list[list[str]]:
        """`count` answers to each question, drawn at a temperature; at 0 each is the greedy one."""
        config, answers = self.vlm.config, []
        words = self.vlm.tokenizer(list(questions), add_special_tokens=False)["input_ids"] if len(questions) else []
        longest = max([self.max_question, *map(len, words)])
        starts = range(0, len(questions), self.batch_size)
        for start in tqdm(starts, desc=progress, disable=not progress, leave=False):
            rows = slice(start, start + self.batch_size)
            size = len(words[rows])
            texts = words[rows] + [[]] * (self.batch_size - size)
            ids, mask = padded(texts, longest, config.pad_token_id)
            pictures = np.zeros((self.batch_size, *images.shape[1:]), np.uint8)
            pictures[:size] = images[rows if shown is None else shown[rows]]
            filled = _filled(self.template, ids, mask, config.pad_token_id)
            key = jax.random.fold_in(jax.random.key(seed), start)
            how = dict(num_generations=count, max_new_tokens=self.max_new, temperature=temperature)
            done = ask(self.vlm.params, config, filled, pictures, key, **how)
            answers += [text.strip() for text in texts_of(self.vlm.tokenizer, done.ids[:size], done.mask[:size])]
        return [answers[i : i + count] for i in range(0, len(answers), count)]


def wilson(successes: float, n: float) -> tuple[float, float]:
    """95 % Wilson score interval of a rate; (0, 1) where nothing was tried."""
    if n == 0:
        return 0.0, 1.0
    z = 1.96
    rate, scale = successes / n, 1 + z * z / n
    middle = (rate + z * z / (2 * n)) / scale
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / scale
    # The ends of none and of all are exact: rounding would leave the rate itself outside.
    return (middle - half if successes else 0.0), (middle + half if successes < n else 1.0)


def effective_size(right: Bool[np.ndarray, "N"], images: Int[np.ndarray, "N"]) -> float:
    """How many independent answers are worth as much as N of which several are about one image.

        N / max(1, v / v0),  v = C / (C - 1) sum over C images of (sum of the image's deviations)^2 / N^2,
        v0 = rate (1 - rate) / N

    (The design effect of cluster sampling: Kish, Survey Sampling, 1965.)
    """
    clusters, place = np.unique(images, return_inverse=True)
    count, rate = len(clusters), right.mean()
    if count in (1, len(right)) or rate in (0, 1):
        return float(count)
    sums = np.bincount(place, right - rate)
    variance = count / (count - 1) * float(sums @ sums) / len(right) ** 2
    return len(right) / max(1.0, variance / (rate * (1 - rate) / len(right)))


def accuracy(answers: Sequence[str], truths: Sequence[str], skills: Sequence[str], images: np.ndarray) -> dict:
    """{"overall", "n", "ci_low", "ci_high", "per_skill": {skill: rate}}: exact match after normalisation.

    images: number of the image that each answer is about; the interval takes images for independent, not answers.
    """
    right = np.array([normalize(a) == normalize(t) for a, t in zip(answers, truths, strict=True)])
    names = np.array(skills)
    size = effective_size(right, images)
    low, high = wilson(float(right.mean()) * size, size)
    per_skill = {skill: float(right[names == skill].mean()) for skill in sorted(set(skills))}
    return {"overall": float(right.mean()), "n": len(right), "ci_low": low, "ci_high": high, "per_skill": per_skill}
