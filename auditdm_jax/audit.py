"""[host] The audit: one question of each of many unseen images, what became of it, and what that shows.

    images -> questions -> answers of target, references, verifier -> outcomes -> discoveries, failure types

The auditor before training ("prompt-only") is measured beside the trained one, on the first of the same
images. The models stay loaded and images pass through them in batches of one shape, so that each model
compiles once.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8
from tqdm import tqdm

from auditdm_jax import discoveries
from auditdm_jax.config import AuditConfig, TrainConfig
from auditdm_jax.data import ImageSource, open_images, reasons, trained_files
from auditdm_jax.errors import one_line
from auditdm_jax.evals import Answerer
from auditdm_jax.files import write_json
from auditdm_jax.models.vlm import VLM
from auditdm_jax.outcomes import Answers, Asked, Examined, examine
from auditdm_jax.prompts import instruction_prompts
from auditdm_jax.rollout import ask, decode, prompt_rows
from auditdm_jax.runs import audit_settings
from auditdm_jax.scenes.dataset import SceneSource
from auditdm_jax.scenes.zoo_paths import load_model
from auditdm_jax.summary import report_lines, summarize

Images = UInt8[np.ndarray, "B H W 3"]
Ask = Callable[[Images, Array], list[tuple[str, bool]]]
"""Images and a key -> a question of each, and whether it ended within the tokens allowed."""
Answer = Callable[[Images, Sequence[str]], list[str]]
"""Images and a question of each -> the answers."""


class Panel(NamedTuple):
    """Who asks and who answers. auditor: the one whose discoveries are kept; prompt_only: the one before
    training, None where that is the same."""

    auditor: Ask
    prompt_only: Ask | None
    target: Answer
    references: tuple[Answer, ...]
    verifier: Answer


class Batches(Protocol):
    """Dicts as `data.ImageSource` and `scenes.dataset.SceneSource` yield them."""

    def __next__(self) -> Any: ...


class Audit(NamedTuple):
    """What became of the questions of both auditors. pngs: by image id, those images whose question (the
    auditor's, not the prompt-only one's) has a consensus."""

    rows: list[Examined]
    prompt_only: list[Examined]
    pngs: dict[str, bytes]


def audit(
    panel: Panel,
    batches: Batches,
    questions: int,
    prompt_only_questions: int,
    agreement: float,
    seed: int,
) -> Audit:
    """One question of each of the first `questions` images, or of all if there are fewer.

    Both auditors draw a batch's questions with the same key, which depends on the seed and on how many
    images came before.
    """
    rows: list[Examined] = []
    before: list[Examined] = []
    pngs: dict[str, bytes] = {}
    with tqdm(total=questions, desc="auditing", unit="image") as bar:
        while len(rows) < questions and (batch := next(batches, None)) is not None:
            key = jax.random.fold_in(jax.random.key(seed), len(rows))
            left = min(int(np.sum(batch.get("valid", len(batch["image_id"])))), questions - len(rows))
            new = question_batch(panel.auditor, panel, batch, key, agreement)[:left]
            pngs |= {row.image_id: discoveries.png(batch["image"][i]) for i, row in enumerate(new) if row.consensus}
            rows += new
            wanted = min(left, prompt_only_questions - len(before))
            if panel.prompt_only is not None and wanted > 0:
                before += question_batch(panel.prompt_only, panel, batch, key, agreement)[:wanted]
            bar.update(left)
    return Audit(rows, rows if panel.prompt_only is None else before, pngs)


def question_batch(auditor: Ask, panel: Panel, batch: dict, key: Array, agreement: float) -> list[Examined]:
    """What becomes of one question of each image of a batch."""
    images, scenes = batch["image"], batch.get("scene", [None] * len(batch["image_id"]))
    asked = [Asked(i, *question) for i, question in zip(batch["image_id"], auditor(images, key), strict=True)]
    texts = [one.question for one in asked]
    answerers = (panel.target, panel.verifier, *panel.references)
    # Two at a time: compiling keeps one core busy, and on the first batch it is most of the time.
    with ThreadPoolExecutor(2) as pool:
        target, verifier, *references = pool.map(lambda answer: answer(images, texts), answerers)
    answers = map(Answers, target, zip(*references, strict=True), verifier)
    return [
        examine(question, said, agreement, scene) for question, said, scene in zip(asked, answers, scenes, strict=True)
    ]


def make_ask(vlm: VLM, instruction: str, max_new_tokens: int, temperature: float) -> Ask:
    """One sampled question an image."""
    prompts = instruction_prompts(vlm, [instruction])

    def ask_batch(images: Images, key: Array) -> list[tuple[str, bool]]:
        done = ask(
            vlm.params,
            vlm.config,
            prompt_rows(prompts, jnp.zeros(len(images), jnp.int32)),
            images,
            key,
            num_generations=1,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
        )
        is_end = np.isin(np.asarray(done.ids), vlm.config.eos_token_ids) & np.asarray(done.mask)
        return list(zip(decode(vlm, done), is_end.any(axis=-1)[:, 0].tolist(), strict=True))

    return ask_batch


def load_panel(trained: str, settings: TrainConfig, temperature: float, batch_size: int) -> tuple[Panel, int]:
    """The models of a run, and the largest image size any of them takes; the others resample on the device.

    trained: the trained auditor, or "" to measure the auditor before training alone. Raises UserError for a
    model that cannot be loaded.
    """
    names = settings.models
    dtype = jnp.dtype(settings.dtype)
    base = load_model(names.auditor, dtype)
    target, verifier, *references = (
        load_model(name, dtype) for name in (names.target, names.verifier, *names.references)
    )
    sampling = (settings.instruction, settings.max_question_tokens, temperature)
    auditor = load_model(trained, dtype) if trained else base

    def answerer(vlm: VLM) -> Answerer:
        return Answerer.of_run(vlm, base, settings, batch_size)

    panel = Panel(
        make_ask(auditor, *sampling),
        make_ask(base, *sampling) if trained else None,
        answerer(target),
        tuple(answerer(vlm) for vlm in references),
        answerer(verifier),
    )
    return panel, max(vlm.config.vision.image_size for vlm in (base, auditor, target, verifier, *references))


def open_unseen(
    spec: tuple[str, ...], trained_on: tuple[str, ...], size: int, batch_size: int, seed: int
) -> SceneSource | ImageSource:
    """One pass over images that training did not see; scenes of the validation split where `spec` is empty, because
    discoveries become training data and the test split examines what was trained on them.

    Of images that training was given, however they were named then, only those that it held out are taken.
    """
    if not spec:
        return SceneSource("validation", 500 + seed, batch_size)  # seeds apart from those that training watched
    known = {Path(item).expanduser().resolve() for item in trained_on}
    split: Any = "heldout" if any(Path(item).expanduser().resolve() in known for item in spec) else "all"
    unseen = dict(split=split, num_epochs=1, leave_out=frozenset() if split == "heldout" else trained_files(trained_on))
    source = open_images(spec, size, batch_size, seed, **unseen)
    if source.num_images < batch_size:  # a batch is never larger than the images there are
        source = open_images(spec, size, source.num_images, seed, **unseen)
    return source


def main(config: AuditConfig) -> dict[str, Any]:
    """Runs the audit, writes `<out>/<name>/audit/` (discoveries, other questions, summary), prints what it
    found.

    Returns the summary.
    """
    settings, trained = audit_settings(config)
    models = settings.models
    if not trained:
        run = one_line(Path(config.out) / config.name)
        print(f"there is no run {run}: auditing with the untrained auditor {one_line(models.auditor)!r}")
    batch_size = min(config.batch_size, config.questions)
    panel, size = load_panel(trained, settings, config.temperature, batch_size)
    spec = config.images or settings.images
    source = open_unseen(spec, settings.images, size, batch_size, config.seed)
    limits = (config.questions, config.prompt_only_questions, settings.reward.agreement, config.seed)
    found = audit(panel, source, *limits)

    folder = Path(config.out) / config.name / "audit"
    files = {name: str(folder / f"{name}.parquet") for name in ("discoveries", "questions")}
    kept = {
        "discoveries": [row for row in found.rows if row.claimed],
        "questions": [row for row in found.rows if row.consensus and not row.claimed],
    }
    for name, rows in kept.items():
        discoveries.write(files[name], rows, [found.pngs[row.image_id] for row in rows], config.seed)
    summary = summarize(found.rows, found.prompt_only) | {
        "auditor": {"name": trained or models.auditor, "trained": bool(trained)},
        "models": models,
        "verified_by": "verifier" if spec else "oracle",
        "image_source": spec or "scenes of the validation split",
        "skipped_images": source.skipped if isinstance(source, ImageSource) else {},
        "seed": config.seed,
        "training_seed": settings.seed,
        "instruction": settings.instruction,
        "agreement": settings.reward.agreement,
        "temperature": config.temperature,
        "max_question_tokens": settings.max_question_tokens,
        "max_answer_tokens": settings.max_answer_tokens,
        "dtype": settings.dtype,
        "files": files,
    }
    write_json(folder / "summary.json", summary)
    print_report(summary, {name: len(rows) for name, rows in kept.items()}, folder)
    return summary


def print_report(summary: dict[str, Any], counts: dict[str, int], folder: Path) -> None:
    """The summary on the terminal, then where the files are."""
    models = summary["models"]
    names = [summary["auditor"]["name"], models.target, ", ".join(models.references)]
    print("auditor {}, target {}, references {}".format(*map(one_line, names)))
    for line in report_lines(summary):
        print(line)
    if summary["skipped_images"]:
        print(f"\nimages skipped: {reasons(summary['skipped_images'])}")
    wrote = ", ".join(f"{name}.parquet ({count} rows)" for name, count in counts.items())
    print(f"\nwritten to {one_line(folder)}: {wrote}, summary.json")
