"""[host] The training run: models in, a loop of steps, logs, checkpoints, and the trained auditor out."""

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import UInt8

from auditdm_jax.alarms import duplicates
from auditdm_jax.channels import Prober, instructions_of
from auditdm_jax.checkpoint import Checkpointer
from auditdm_jax.collect import StepSettings
from auditdm_jax.config import TrainConfig
from auditdm_jax.critic import FILE as CRITIC
from auditdm_jax.critic import ignorant, write_critic
from auditdm_jax.data import ImageSource, Source, open_images, reasons
from auditdm_jax.errors import UserError
from auditdm_jax.files import atomic_folder, lock_folder
from auditdm_jax.health import weight_warnings
from auditdm_jax.heldout import for_probe, probe
from auditdm_jax.joint import make_joint_step
from auditdm_jax.layout import used_by_all
from auditdm_jax.log import Log
from auditdm_jax.models import lora
from auditdm_jax.models.vlm import VLM
from auditdm_jax.players import Players, cast_of, input_size, load_players, retokenizer, share_tokens
from auditdm_jax.scenes.dataset import SceneSource
from auditdm_jax.state import AuditState, Frozen, Trained
from auditdm_jax.step import make_look, make_step
from auditdm_jax.studio import Studio
from auditdm_jax.topics import topics_of

ARCHIVE_SIZE = 4096
RESOURCES = tuple(f"probing.render.{name}" for name in ("device", "micro_batch_size", "cpu_offload"))
MAY_DIFFER = ("steps", "resume", "overwrite", "checkpoint_every", "out", *RESOURCES)
"""Settings of a run that may be others when it is resumed."""


def step_settings(config: TrainConfig) -> StepSettings:
    grpo = config.grpo
    updates = config.steps * grpo.num_iterations
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, grpo.learning_rate, max(1, updates // 10), max(2, updates), grpo.learning_rate / 20
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(grpo.max_grad_norm), optax.adamw(schedule, b2=0.99, weight_decay=0.0)
    )
    lengths = config.max_question_tokens, config.max_answer_tokens
    return StepSettings(grpo, config.reward, config.steps, *lengths, config.remat, optimizer)


def initial_state(config: TrainConfig, players: Players, optimizer: optax.GradientTransformation) -> AuditState:
    """The run's pytree before its first step."""
    key = jax.random.key(config.seed)
    base = players.auditor.params
    trainable = lora.trainable_of(jax.random.fold_in(key, 1), base, config.lora_rank)  # a copy, for it is donated
    trained = Trained(
        trainable,
        optimizer.init(trainable),
        key,
        jnp.zeros((), jnp.int32),
        jnp.zeros(ARCHIVE_SIZE, jnp.float32),
        jnp.zeros((2, len(config.topics)), jnp.float32),
        ignorant(len(instructions_of(config)) + len(config.topics), players.auditor.config.text.width),
    )
    # Bound to its device, as a renderer's images are and all that is computed from them: a step that returned
    # parameters bound otherwise than it was given them would compile once more.
    trained = jax.device_put(trained, trained.step.sharding)
    return AuditState(trained, Frozen(base, players.target.params, tuple(vlm.params for vlm in players.references)))


def open_source(config: TrainConfig, size: int, split: Literal["train", "heldout"]) -> Source:
    """Images to train on ("train") or held out from training ("heldout")."""
    if config.images:
        return open_images(config.images, size, config.images_per_step, config.seed, split=split)
    return SceneSource("train" if split == "train" else "validation", config.seed, config.images_per_step)


class Opened(NamedTuple):
    """A run that can begin or go on: its state after `first` steps, its images, its checkpoints."""

    folder: Path
    lock: int
    state: AuditState
    first: int
    source: Source
    held_out: Source
    checkpoints: Checkpointer

    def save(self, number: int, state: AuditState) -> None:
        position = {"train": self.source.get_state(), "heldout": self.held_out.get_state()}
        self.checkpoints.save(number, state.trained, position)

    def close(self, state: AuditState, auditor: VLM) -> Path:
        """Writes the trained auditor and its critic; returns the folder."""
        write_critic(self.folder, state.trained.critic)
        save_auditor(self.folder / "auditor", state, auditor)  # last: who finds it takes the run for finished
        self.checkpoints.close()
        os.close(self.lock)
        if isinstance(self.source, ImageSource) and self.source.skipped:
            print(f"images skipped: {reasons(self.source.skipped)}")
        return self.folder


def open_run(config: TrainConfig, players: Players, settings: StepSettings) -> Opened:
    """A new run, or one that is resumed. Raises UserError if its folder holds another."""
    folder = Path(config.out) / config.name
    state, first = initial_state(config, players, settings.optimizer), 0
    size = input_size(players)
    source, held_out = open_source(config, size, "train"), open_source(config, size, "heldout")
    # Only now, when all that was named has been found, may an earlier run give way.
    lock = lock_folder(folder)
    if config.overwrite and not config.resume:
        for part in ("checkpoints", "auditor", "audit", "rectify"):
            shutil.rmtree(folder / part, ignore_errors=True)
        (folder / CRITIC).unlink(missing_ok=True)
    checkpoints = Checkpointer(
        folder, asdict(config), may_differ=MAY_DIFFER, fresh=not config.resume, steps=config.steps
    )
    if config.resume and (restored := checkpoints.restore(state.trained)) is not None:
        state, first = replace(state, trained=restored.state), restored.step
        source.set_state(restored.position["train"])
        held_out.set_state(restored.position["heldout"])
        if first < config.steps:  # an auditor that is there is one of fewer steps, and so is what it found
            for part in ("auditor", "audit"):
                shutil.rmtree(folder / part, ignore_errors=True)
    return Opened(folder, lock, state, first, source, held_out, checkpoints)


def train(config: TrainConfig) -> Path:
    """Run or resume a training run; returns its folder, with the trained auditor in `auditor/`."""
    return train_jointly([config])[0]


def train_jointly(configs: Sequence[TrainConfig]) -> list[Path]:
    """Runs that differ in name and seed alone, a step of all at once (`joint.py`); returns their folders.

    One after another where that cannot be, or where they are resumed at different steps.
    """
    config = configs[0]
    if config.resume and config.overwrite:
        raise UserError("--resume goes on and --overwrite begins again; give one of them")
    players = load_players(config)
    settings = step_settings(config)
    topics = topics_of(players.auditor, config.topics, config.max_question_tokens)
    cast = cast_of(players, instructions_of(config), topics)
    studio = Studio.load(config.probing)
    if studio:
        studio.check_size(input_size(players))
        used_by_all(config.probing, config.images_per_step)
    prober = studio and Prober.of_run(config, players.auditor, cast.auditor.prompts, config.grpo.temperature, studio)
    runs = [open_run(each, players, settings) for each in configs]
    states, first = [run.state for run in runs], runs[0].first
    translate = None if share_tokens(players) else retokenizer(players)
    every = config.probing.every
    if len(runs) == 1:
        whole, asking = make_step(cast, settings, translate, prober), make_step(cast, settings, translate)
        step: Any = one_run(whole)
        between = one_run(asking) if every > 1 else step
        look = one_run(make_look(cast, settings, translate, prober)) if prober else step
    elif not (translate or prober or settings.grpo.max_resamples or any(run.first != first for run in runs)):
        step = between = look = make_joint_step(cast, settings)
    else:
        for run in runs:
            run.checkpoints.close()
            os.close(run.lock)
        return [train(each) for each in configs]

    judges = (config.models.target, *config.models.references)
    for line in weight_warnings(judges, (states[0].frozen.target, *states[0].frozen.references)):
        print(line)

    def draw() -> Any:
        return next(runs[0].source)["image"]

    with ExitStack() as stack:
        logs = [stack.enter_context(Log(run.folder, first, config.steps)) for run in runs]

        def log_probes(number: int) -> None:
            rows = probe(look, states, [run.held_out for run in runs], players.auditor)
            for log, row in zip(logs, rows, strict=True):
                log.flush()
                log.write(number, row)

        if every > 1 and not translate and first < config.steps:
            blank = np.zeros((config.images_per_step, *[input_size(players)] * 2, 3), np.uint8)
            compile_ahead(whole, asking, states[0], blank)
        if first == 0:
            log_probes(0)
        for number in range(first + 1, config.steps + 1):
            now = between if number % every else step
            done = now(states, [next(run.source)["image"] for run in runs], draw)
            states = [state for state, _, _ in done]
            for log, (_, metrics, record) in zip(logs, done, strict=True):
                repeated = duplicates(record["written_ids"], record["written_mask"])
                log.step(number, metrics | {"question/duplicates": repeated})
            last = number == config.steps
            if number % config.probe_every == 0 or last:
                log_probes(number)
            if number % config.checkpoint_every == 0 or last:
                for log, run, state in zip(logs, runs, states, strict=True):
                    log.flush()
                    run.save(number, state)
    return [run.close(state, players.auditor) for run, state in zip(runs, states, strict=True)]


def compile_ahead(step: Callable, asking: Callable, state: AuditState, images: UInt8[np.ndarray, "B H W 3"]) -> None:
    """Compiles a step that makes new images, and `asking`, one that makes none, by taking each; what they compute is
    not kept.

    The first is several compiled functions with the renderer between, the second a large one: what one leaves idle of
    the cores, before it generates code, the other uses. More of them at a time would take longer on two cores.
    """
    with ThreadPoolExecutor(1) as thread:
        aside = thread.submit(asking, for_probe(state), images)
        step(for_probe(state), images)
        aside.result()


def one_run(step: Callable) -> Callable:
    """A step of one run as that of several, with lists of one."""
    return lambda states, images, draw=None: [step(states[0], images[0], draw)]


def save_auditor(folder: Path, state: AuditState, auditor: VLM) -> None:
    """The trained auditor as a Hugging Face checkpoint directory; adapters are folded in."""
    params = lora.learned(state.frozen.auditor, state.trained.auditor)
    with atomic_folder(folder) as draft:
        VLM(params, auditor.config, auditor.processor, auditor.hf_config).save(draft)
