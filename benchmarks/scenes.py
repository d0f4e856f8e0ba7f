"""Image-question pairs a second on one core: the embedded world must never hold up training.

python benchmarks/scenes.py            # about ten seconds
"""

import time

import numpy as np

from auditdm_jax.scenes.dataset import balanced_set, question_stream
from auditdm_jax.scenes.oracle import judge
from auditdm_jax.scenes.questions import DISTRIBUTIONS

TARGET = 2000
IMAGES = 16
SECONDS = 1.0


def rate(distribution: str, per_image: int) -> float:
    """Pairs a second of the processor's time, which other programs on the machine do not slow much.

    NumPy's work here is element-wise, on one thread, so this is the rate of one core.
    """
    stream = question_stream(999, 0, IMAGES, per_image, distribution, unanswerable=0.12, description=0.2)
    next(stream)
    pairs, start = 0, time.process_time()
    while (spent := time.process_time() - start) < SECONDS:
        pictures, questions = next(stream)
        pairs += sum(map(len, questions))
        assert pictures.shape[0] == len(questions)
    return pairs / spent


def judge_rate() -> float:
    """Questions a second that the oracle parses and answers."""
    examples = balanced_set(400)
    judged, start = 0, time.process_time()
    while (spent := time.process_time() - start) < SECONDS:
        for scene, question in zip(examples.scenes, examples.questions, strict=True):
            judge(question.text, scene)
        judged += len(examples.questions)
    return judged / spent


def main() -> None:
    print(f"embedded world, NumPy {np.__version__}, one core; target {TARGET:,} pairs a second")
    print(f"{'distribution':<14}{'questions an image':>20}{'pairs a second':>16}{'of target':>11}")
    for distribution in DISTRIBUTIONS:
        for per_image in (1, 4, 16):
            pairs = rate(distribution, per_image)
            print(f"{distribution:<14}{per_image:>20}{pairs:>16,.0f}{pairs / TARGET:>10.1f}x")
    print(f"oracle: {judge_rate():,.0f} questions parsed and answered a second")


if __name__ == "__main__":
    main()
