"""A whole training step beside TRL's `GRPOTrainer`, in one run: `pip install -e ".[bench]"`, then
`python benchmarks/training_step.py`.

The same tiny Gemma 3 auditor, 8 images x 8 completions x 16 tokens, GRPO with a KL term, a reward that costs nothing:
what is measured is sampling, log-probs and the update. TRL's steps are timed by its own loop, ours in blocks of as
many steps, in turn; the ratio is of medians.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
import tyro
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from auditdm_jax.collect import Batch
from auditdm_jax.config import TrainConfig
from auditdm_jax.conventions import GRPO
from auditdm_jax.critic import ignorant
from auditdm_jax.huge_pages import with_huge_pages
from auditdm_jax.models.vlm import VLM
from auditdm_jax.prompts import QUESTION_INSTRUCTION, instruction_prompts
from auditdm_jax.rollout import ask, prompt_rows
from auditdm_jax.scenes.dataset import scenes_of
from auditdm_jax.scenes.members import MEMBERS, new_model
from auditdm_jax.state import Frozen, Trained
from auditdm_jax.step import update
from auditdm_jax.training import step_settings

IMAGES, COMPLETIONS, TOKENS, BETA = 8, 8, 16, 0.04


@dataclass(frozen=True)
class Config:
    """How long to measure."""

    rounds: int = 3
    steps: int = 8
    """Steps in a round of each."""


def free_reward(completions, **_) -> list[float]:
    """Alternating, so that every group has a gradient."""
    return [float(i % 2) for i in range(len(completions))]


def our_steps(vlm: VLM, images: np.ndarray):
    """run(number) makes that many steps."""
    grpo = GRPO(num_generations=COMPLETIONS, beta=BETA, kl_estimator="k3", learning_rate=1e-5)
    settings = step_settings(TrainConfig(grpo=grpo, max_question_tokens=TOKENS))
    # No sampled token ends a completion: all 16 are always made, as TRL is told to.
    config = replace(vlm.config, eos_token_ids=(vlm.config.image_token_id,))
    prompt = prompt_rows(instruction_prompts(vlm, [QUESTION_INSTRUCTION]), jnp.zeros(IMAGES, jnp.int32))
    frozen = Frozen(vlm.params, None, ())
    rewards = jnp.asarray(free_reward(range(IMAGES * COMPLETIONS))).reshape(IMAGES, COMPLETIONS)

    @jax.jit
    def step(trained: Trained, images):
        key = jax.random.fold_in(trained.key, trained.step)
        lengths = dict(num_generations=COMPLETIONS, max_new_tokens=TOKENS, temperature=1.0)
        questions = ask(trained.auditor, config, prompt, images, key, **lengths)
        room = jnp.full(IMAGES, TOKENS)
        batch = Batch(images, prompt, questions, questions.mask, room, rewards, jnp.ones(IMAGES, bool))
        return update(trained, frozen, config, batch, settings)[0]

    trainable = jax.tree.map(jnp.array, vlm.params)
    opt_state = settings.optimizer.init(trainable)
    trained = Trained(
        trainable,
        opt_state,
        jax.random.key(0),
        jnp.zeros((), jnp.int32),
        jnp.zeros(1),
        jnp.zeros((2, 0)),
        ignorant(1, config.text.width),
    )

    def run(number: int) -> None:
        nonlocal trained
        for _ in range(number):
            trained = step(trained, images)
        jax.block_until_ready(trained.auditor)

    return run


class StepTimes(TrainerCallback):
    """Seconds of every step of a Trainer."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, *_, **__):
        self.start = time.perf_counter()

    def on_step_end(self, *_, **__):
        self.seconds.append(time.perf_counter() - self.start)


def their_seconds(folder: str, images: np.ndarray, steps: int) -> list[float]:
    """TRL's seconds a step, the first ones, which warm up, left out."""
    prompt = [{"role": "user", "content": QUESTION_INSTRUCTION}]
    rows = [{"prompt": prompt, "image": Image.fromarray(image)} for image in images]
    times = StepTimes()
    trainer = GRPOTrainer(
        model=AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32),
        processing_class=AutoProcessor.from_pretrained(folder, padding_side="left"),
        reward_funcs=free_reward,
        train_dataset=Dataset.from_list(rows),
        callbacks=[times],
        args=GRPOConfig(
            output_dir=folder, use_cpu=not torch.cuda.is_available(), bf16=False, max_steps=steps + 2, seed=0,
            per_device_train_batch_size=IMAGES * COMPLETIONS, num_generations=COMPLETIONS, beta=BETA,
            max_completion_length=TOKENS, generation_kwargs={"min_new_tokens": TOKENS}, gradient_checkpointing=False,
            learning_rate=1e-5, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        ),
    )  # fmt: skip
    trainer.train()
    return times.seconds[2:]


def main(config: Config) -> None:
    transformers.logging.set_verbosity_error()
    vlm = new_model(MEMBERS["auditor"])
    images = scenes_of("train", 0, IMAGES)[1]
    run = our_steps(vlm, images)
    run(2)  # compilation and warm-up
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        vlm.save(folder)
        for _ in range(config.rounds):
            for _ in range(config.steps):
                start = time.perf_counter()
                run(1)
                ours.append(time.perf_counter() - start)
            theirs += their_seconds(folder, images, config.steps)
    print(f"{IMAGES} images x {COMPLETIONS} completions x {TOKENS} tokens, {len(ours)} steps each")
    for name, seconds in (("ours", ours), ("TRL", theirs)):
        print(f"  {name:5} {statistics.median(seconds):.3f} s a step, median")
    print(f"  ratio {statistics.median(theirs) / statistics.median(ours):.1f}")


if __name__ == "__main__":
    with_huge_pages()
    torch.backends.cuda.matmul.allow_tf32 = True  # as JAX multiplies on a GPU unless told otherwise
    main(tyro.cli(Config))
