"""[host] The training run: models in, a loop of steps, logs, checkpoints, and the trained auditor out."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from auditdm_jax.answering import Questions, Translate
from auditdm_jax.answers import text_answer_id, token_bytes
from auditdm_jax.channels import Prober, Studio, instructions_of, layout
from auditdm_jax.checkpoint import Checkpointer
from auditdm_jax.collect import StepSettings
from auditdm_jax.config import TrainConfig
from auditdm_jax.data import ImageSource, open_images, reasons
from auditdm_jax.errors import UserError
from auditdm_jax.files import atomic_folder, write_json
from auditdm_jax.log import Log
from auditdm_jax.models import lora
from auditdm_jax.models.vlm import VLM
from auditdm_jax.prompts import instruction_prompts, padded, template_for, texts_of
from auditdm_jax.scenes.dataset import SceneSource
from auditdm_jax.scenes.oracle import judge
from auditdm_jax.scenes.parser import scenes_in
from auditdm_jax.scenes.zoo_paths import load_model
from auditdm_jax.state import Auditor, AuditState, Cast, Frozen, Role, Trained
from auditdm_jax.step import make_step
from auditdm_jax.topics import TOPICS, Topics, topic_weights, topics_of

ARCHIVE_SIZE = 4096
PROBE_DRAWS = 2**31


class Players(NamedTuple):
    """The loaded models of a run."""

    auditor: VLM
    target: VLM
    references: tuple[VLM, ...]


class Source(Protocol):
    """Batches of images with a position that a checkpoint can hold."""

    def __next__(self) -> Any: ...
    def get_state(self) -> dict: ...
    def set_state(self, state: dict) -> None: ...


def load_players(config: TrainConfig) -> Players:
    dtype = jnp.dtype(config.dtype)
    names = (config.models.auditor, config.models.target, *config.models.references)
    auditor, target, *references = (load_model(name, dtype) for name in names)
    return Players(auditor, target, tuple(references))


def cast_of(players: Players, instructions: Sequence[str], topics: Topics | None = None) -> Cast:
    """How each model is spoken to. instructions: one of each of the auditor's channels."""

    def role(vlm: VLM) -> Role:
        return Role(vlm.config, template_for(vlm), token_bytes(vlm.tokenizer))

    return Cast(
        Auditor(players.auditor.config, instruction_prompts(players.auditor, instructions), topics),
        role(players.target),
        tuple(role(vlm) for vlm in players.references),
    )


def share_tokens(players: Players) -> bool:
    """Whether every model reads the auditor's token ids as the auditor writes them.

    Special tokens, which are no part of a question, may be spelled otherwise; and ids without a token, which pad a
    vocabulary to a round size, may mean something to another model.
    """
    auditor = players.auditor
    special, size = set(auditor.tokenizer.all_special_ids), auditor.config.text.vocab_size
    written = {i: token for token, i in auditor.tokenizer.get_vocab().items() if i < size and i not in special}
    return all(
        vlm.config.text.vocab_size > max(written)
        and vlm.tokenizer.convert_ids_to_tokens(list(written)) == list(written.values())
        for vlm in (players.target, *players.references)
    )


def retokenizer(players: Players) -> Translate:
    """Text in the tokens of the auditor, or of another model, -> in those of a model, through the host."""
    models = (players.target, *players.references)

    def translate(questions: Questions, number: int, writer: int | None) -> Questions:
        vlm = models[number]
        texts = texts_of((players.auditor if writer is None else models[writer]).tokenizer, *questions)
        tokens = vlm.tokenizer(texts, add_special_tokens=False)["input_ids"]
        # Twice the room: another vocabulary may cut the same words finer.
        *lead, length = questions[0].shape
        ids, mask = padded(tokens, 2 * length, vlm.config.pad_token_id)
        return jnp.asarray(ids.reshape(*lead, 2 * length)), jnp.asarray(mask.reshape(*lead, 2 * length))

    return translate


def step_settings(config: TrainConfig) -> StepSettings:
    grpo = config.grpo
    updates = config.steps * grpo.num_iterations
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, grpo.learning_rate, max(1, updates // 10), max(2, updates), grpo.learning_rate / 20
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(grpo.max_grad_norm), optax.adamw(schedule, b2=0.99, weight_decay=0.0)
    )
    return StepSettings(
        grpo, config.reward, config.max_question_tokens, config.max_answer_tokens, config.remat, optimizer
    )


def initial_state(config: TrainConfig, players: Players, optimizer: optax.GradientTransformation) -> AuditState:
    """The run's pytree before its first step."""
    key = jax.random.key(config.seed)
    base = players.auditor.params
    if config.lora_rank:
        trainable = lora.init(jax.random.fold_in(key, 1), base, config.lora_rank)
    else:
        trainable = jax.tree.map(lambda x: jnp.array(x, jnp.float32), base)  # a copy: this one is donated
    trained = Trained(
        trainable,
        optimizer.init(trainable),
        key,
        jnp.zeros((), jnp.int32),
        jnp.zeros(ARCHIVE_SIZE, jnp.float32),
        jnp.zeros((2, len(config.reward.topics)), jnp.float32),
    )
    return AuditState(trained, Frozen(base, players.target.params, tuple(vlm.params for vlm in players.references)))


def open_source(config: TrainConfig, size: int, split: Literal["train", "heldout"]) -> Source:
    """Images to train on ("train") or held out from training ("heldout")."""
    if config.images:
        return open_images(config.images, size, config.images_per_step, config.seed, split=split)
    return SceneSource("train" if split == "train" else "validation", config.seed, config.images_per_step)


def verified(record: dict, batch: dict, auditor: VLM) -> dict[str, float]:
    """For scenes: what the oracle says of a batch of questions.

    verified: target wrong and consensus right; unanswerable: without an answer; unreadable: of new images that show no
    scene.
    """
    ids, mask = np.asarray(record["question_ids"]), np.asarray(record["question_mask"])
    target, consensus, claimed = (np.asarray(record[name]) for name in ("target_id", "consensus_id", "claimed"))
    counts = dict.fromkeys(("answered", "unanswerable", "unparsable", "unreadable", "verified"), 0)
    skills = set()
    generations = claimed.shape[1]
    # New images are read back; those that show no scene of this world any more are not verified.
    seen = (
        scenes_in(np.asarray(record["images"]))
        if "images" in record
        else [scene for scene in batch["scene"] for _ in range(generations)]
    )
    for i in range(len(claimed)):
        for g, text in enumerate(texts_of(auditor.tokenizer, ids[i], mask[i])):
            scene = seen[i * generations + g]
            if scene is None:
                counts["unreadable"] += 1
                continue
            verdict = judge(text, scene)
            counts[verdict.status] += 1
            if verdict.status == "answered" and claimed[i, g]:
                truth = text_answer_id(verdict.answer)
                if consensus[i, g] == truth != target[i, g]:
                    counts["verified"] += 1
                    skills.add(verdict.skill)
    total = claimed.size
    shares = {f"oracle/{name}": count / total for name, count in counts.items()}
    return shares | {"skills": len(skills)}


def train(config: TrainConfig) -> Path:
    """Run or resume a training run; returns its folder, with the trained auditor in `auditor/`."""
    run = Path(config.out) / config.name
    players = load_players(config)
    settings = step_settings(config)
    state = initial_state(config, players, settings.optimizer)
    size = input_size(players)
    source, held_out = open_source(config, size, "train"), open_source(config, size, "heldout")
    topics = topics_of(players.auditor, config.instruction, config.reward.topics, config.max_question_tokens)
    cast = cast_of(players, instructions_of(config), topics)
    studio = Studio.load(config.probing)
    if studio:
        studio.check_size(size)
        used_by_all(config)
    prober = studio and Prober.of_run(config, players.auditor, cast.auditor.prompts, config.grpo.temperature, studio)
    # Only now, when all that was named has been found, may an earlier run give way.
    if config.overwrite and not config.resume:
        for part in ("checkpoints", "auditor", "audit", "rectify"):
            shutil.rmtree(run / part, ignore_errors=True)
    resources = (f"probing.render.{name}" for name in ("device", "micro_batch_size", "cpu_offload"))
    may_differ = ("steps", "resume", "overwrite", "checkpoint_every", "out", *resources)
    checkpoints = Checkpointer(run, asdict(config), may_differ=may_differ, fresh=not config.resume)
    first = 0
    if config.resume and (restored := checkpoints.restore(state.trained)) is not None:
        state, first = replace(state, trained=restored.state), restored.step
        source.set_state(restored.position["train"])
        held_out.set_state(restored.position["heldout"])
    translate = None if share_tokens(players) else retokenizer(players)
    step = make_step(cast, settings, translate, prober)

    def draw() -> Any:
        return next(source)["image"]

    with Log(run, first, config.steps) as log:
        if first == 0:
            log.write(0, probe(step, state, next(held_out), players.auditor))
        for number in range(first + 1, config.steps + 1):
            state, metrics, _ = step(state, draw(), draw)
            log.step(number, metrics)
            if number % config.probe_every == 0 or number == config.steps:
                log.flush()
                log.write(number, probe(step, state, next(held_out), players.auditor))
            if number % config.checkpoint_every == 0 or number == config.steps:
                log.flush()
                position = {"train": source.get_state(), "heldout": held_out.get_state()}
                checkpoints.save(number, state.trained, position)
    save_auditor(run / "auditor", state, players.auditor)
    if topics:
        weights = topic_weights(state.trained.topics, config.reward.diversity, config.reward.topic_share)
        write_json(run / TOPICS, dict(zip(("", *config.reward.topics), weights.tolist(), strict=True)))
    checkpoints.close()
    if isinstance(source, ImageSource) and source.skipped:
        print(f"images skipped: {reasons(source.skipped)}")
    return run


def used_by_all(config: TrainConfig) -> None:
    """Raises UserError if a batch has too few images for one of the channels."""
    shared_out = layout(config.probing, config.images_per_step)
    for channel in config.probing.channels:
        if not len(shared_out.through(channel)):
            raise UserError(
                f"of {config.images_per_step} images a step none goes through the channel {channel}; raise "
                "--images-per-step or its weight, or leave it out"
            )


def input_size(players: Players) -> int:
    """Images are read at the largest size any model takes; the others resample on the device."""
    return max(vlm.config.vision.image_size for vlm in (players.auditor, players.target, *players.references))


def probe(step, state: AuditState, batch: dict, auditor: VLM) -> dict[str, float]:
    """Claimed and, for scenes, verified success on held-out images: a step whose update is thrown away."""
    trained = jax.tree.map(jnp.copy, state.trained)  # the step donates what it is given
    # With draws apart from those of the next step.
    copy = replace(state, trained=replace(trained, key=jax.random.fold_in(trained.key, PROBE_DRAWS)))
    _, metrics, record = step(copy, batch["image"])
    shares = verified(record, batch, auditor) if "scene" in batch else {}
    return {f"heldout/{name}": value for name, value in shares.items()} | {
        "heldout/claimed": float(metrics["outcome/claimed"])
    }


def save_auditor(folder: Path, state: AuditState, auditor: VLM) -> None:
    """The trained auditor as a Hugging Face checkpoint directory; adapters are folded in."""
    trained, base = state.trained.auditor, state.frozen.auditor
    params = trained if "text" in trained else lora.merge(base, trained)
    params = jax.tree.map(lambda new, old: new.astype(old.dtype), params, base)
    with atomic_folder(folder) as draft:
        VLM(params, auditor.config, auditor.processor, auditor.hf_config).save(draft)
