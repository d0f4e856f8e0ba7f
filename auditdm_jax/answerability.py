"""[host] Scores that tell, without an oracle, whether a question has an answer and the references are right about it.

Each is the share of further answers that equal the consensus: of the same references when the question is rephrased,
when the image is changed a little, or when they sample; or of a model of another family. How well each one tells is
measured by `auroc`, against an oracle (benchmarks/answerability.py).
"""

from collections.abc import Callable, Sequence

import numpy as np
import scipy.optimize
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

    The interval holds each area a that the measured one is not 1.96 standard deviations away from, as Wilson's does for
    a rate, so that it has a width where all are in order, too (Newcombe, Statistics in Medicine 25 (2006), method 5):

        variance(a) = a (1 - a) (1 + (N - 1) ((1 - a) / (2 - a) + a / (1 + a))) / (m n),    N = (m + n) / 2
    """
    up, down = scores[positive], scores[~positive]
    if not len(up) or not len(down):
        return float("nan"), 0.0, 1.0
    area = float(((up[:, None] > down) + 0.5 * (up[:, None] == down)).mean())
    others = (len(up) + len(down)) / 2 - 1

    def excess(a: float) -> float:
        variance = a * (1 - a) * (1 + others * ((1 - a) / (2 - a) + a / (1 + a))) / (len(up) * len(down))
        return (area - a) ** 2 - 1.96**2 * variance

    # An area of 0 or 1 is a root of its own.
    low = scipy.optimize.brentq(excess, 0.0, area - 1e-9) if area else 0.0
    high = scipy.optimize.brentq(excess, area + 1e-9, 1.0) if area < 1 else 1.0
    return area, float(low), float(high)
