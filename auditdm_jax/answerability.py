"""[host] Scores that tell, without an oracle, whether a question has an answer and the references are right about it.

Each is the share of further answers that equal the consensus: of the same references when the question is rephrased,
when the image is changed a little, or when they sample; or of a model of another family. How well each one tells is
measured by `auroc`, against an oracle (benchmarks/answerability.py).
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from auditdm_jax.outcomes import vote

Images = UInt8[np.ndarray, "N H W 3"]

REPHRASINGS: dict[str, Callable[[str], str]] = {
    "please": lambda question: f"please {question}",
    "now": lambda question: f"now {question}",
    "no mark": lambda question: question.rstrip("? "),
}
"""Forms of a question that mean the same in any world, and need no model to write them."""


def brighter(images: Images) -> Images:
    """A tenth brighter."""
    return np.minimum(images * 1.1, 255).astype(np.uint8)


def noisy(images: Images) -> Images:
    """With Gaussian noise of 5 levels in 255, the same for every call."""
    noise = np.random.default_rng(0).normal(0, 5, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def shifted(images: Images) -> Images:
    """One pixel to the right, the left column doubled."""
    return np.concatenate([images[:, :, :1], images[:, :, :-1]], axis=2)


IMAGE_CHANGES: dict[str, Callable[[Images], Images]] = {"brighter": brighter, "noise": noisy, "shift": shifted}
"""Changes of an image that leave what it shows as it was."""


def agreement(consensus: Sequence[str], answers: Sequence[Sequence[str]]) -> Float[np.ndarray, "N"]:
    """Of K further answers to each of N questions (K lists of N), the share that equals the consensus, in [0, 1].

    agreement(["2", "red"], [["two", "blue"], ["3", "red"]]) is [0.5, 0.5].
    """
    wanted = [vote(answer) for answer in consensus]
    same = [[vote(answer) == want for answer, want in zip(given, wanted, strict=True)] for given in answers]
    return np.mean(np.array(same, float), axis=0)


def auroc(scores: Float[np.ndarray, "N"], positive: Bool[np.ndarray, "N"]) -> tuple[float, float, float]:
    """The area under the ROC curve of a score, with its 95 % interval; NaN and (0, 1) without both kinds.

        area = P(score of a positive > score of a negative), equal scores counting one half
        variance = var(V10) / m + var(V01) / n                     DeLong et al., Biometrics 44 (1988)

    V10, V01: of each of the m positives, n negatives, the share of the other kind that it is in order with.
    """
    up, down = scores[positive], scores[~positive]
    if not len(up) or not len(down):
        return float("nan"), 0.0, 1.0
    above = (up[:, None] > down).astype(float) + 0.5 * (up[:, None] == down)
    parts = [above.mean(axis) for axis in (1, 0)]
    variance = sum(part.var(ddof=1) / len(part) if len(part) > 1 else 0.25 for part in parts)
    area, half = float(above.mean()), 1.96 * float(np.sqrt(variance))
    return area, max(0.0, area - half), min(1.0, area + half)
