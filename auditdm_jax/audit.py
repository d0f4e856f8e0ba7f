"""[host] The audit: one question of each of many unseen images, what became of it, and what that shows.

    images -> probes (`channels`) -> answers of target, references, verifier -> outcomes -> discoveries, failure types

An edited image with an old question is compared with its original: an edit that leaves the references' answer as it
was and turns the target's shows what the target is sensitive to.

The auditor before training ("prompt-only") is measured beside the trained one, on the first of the same
images. The models stay loaded and images pass through them in batches of one shape, so that each model
compiles once.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array
from tqdm import tqdm

from auditdm_jax import discoveries
from auditdm_jax.asking import Ask, Asking, Panel, load_panel
from auditdm_jax.choice import Guide
from auditdm_jax.config import AuditConfig, TrainConfig
from auditdm_jax.critic import read_critic
from auditdm_jax.data import ImageSource, open_images, reasons, trained_places
from auditdm_jax.errors import one_line
from auditdm_jax.files import write_json
from auditdm_jax.health import health_lines, reference_health
from auditdm_jax.layout import used_by_all
from auditdm_jax.outcomes import Answers, Examined, consensus_of, examine
from auditdm_jax.runs import audit_settings
from auditdm_jax.scenes.dataset import SceneSource
from auditdm_jax.scenes.parser import scenes_in
from auditdm_jax.summary import report_lines, summarize


class Audit(NamedTuple):
    """What became of the questions of both auditors. pngs: by image id, what those of the auditor's questions were
    asked of that have a consensus; originals: of the new images among them, what these were made from."""

    rows: list[Examined]
    prompt_only: list[Examined]
    pngs: dict[str, bytes]
    originals: dict[str, bytes]


def audit(
    panel: Panel, batches: Iterator[Any], questions: int, prompt_only_questions: int, agreement: float, seed: int
) -> Audit:
    """One question of each of the first `questions` images, or of all if there are fewer.

    Both auditors draw a batch's questions with the same key, which depends on the seed and on how many
    images came before.
    """
    rows: list[Examined] = []
    before: list[Examined] = []
    pngs: dict[str, bytes] = {}
    originals: dict[str, bytes] = {}
    edited: dict[str, np.ndarray] = {}
    with tqdm(total=questions, desc="auditing", unit="image") as bar:
        while len(rows) < questions and (batch := next(batches, None)) is not None:
            key = jax.random.fold_in(jax.random.key(seed), len(rows))
            left = min(int(np.sum(batch.get("valid", len(batch["image_id"])))), questions - len(rows))
            asking, new = question_batch(panel.auditor, panel, batch, key, agreement)
            for i, row in enumerate(new[:left]):
                if row.consensus:
                    pngs[row.image_id] = discoveries.png(asking.images[i])
                    if row.channel != "question":
                        originals[row.image_id] = discoveries.png(batch["image"][i])
            edited |= {row.image_id: batch["image"][i] for i, row in enumerate(new[:left]) if row.channel == "edit"}
            rows += new[:left]
            wanted = min(left, prompt_only_questions - len(before))
            if panel.prompt_only is not None and wanted > 0:
                before += question_batch(panel.prompt_only, panel, batch, key, agreement)[1][:wanted]
            bar.update(left)
    rows, before = (with_originals(panel, examined, edited, agreement) for examined in (rows, before))
    return Audit(rows, rows if panel.prompt_only is None else before, pngs, originals)


def question_batch(
    auditor: Ask, panel: Panel, batch: dict, key: Array, agreement: float
) -> tuple[Asking, list[Examined]]:
    """One question of each image of a batch, and what becomes of it."""
    asking = auditor(batch["image"], key)
    scenes = list(batch.get("scene", [None] * len(asking.asked)))
    changed = [i for i, asked in enumerate(asking.asked) if asked.channel != "question"]
    unread = [False] * len(scenes)
    if changed and "scene" in batch:
        for i, scene in zip(changed, scenes_in(asking.images[changed]), strict=True):
            scenes[i], unread[i] = scene, scene is None
    texts = [asked.question for asked in asking.asked]
    # Two at a time: compiling keeps one core busy, and on the first batch it is most of the time.
    with ThreadPoolExecutor(2) as pool:
        models = (panel.verifier, panel.target, *panel.references)
        verified, target, *references = pool.map(lambda answer: answer(asking.images, texts), models)
    answers = map(Answers, target, zip(*references, strict=True), verified)
    rows = [
        examine(asked._replace(image_id=image_id), said, agreement, scene, lost)
        for asked, image_id, said, scene, lost in zip(
            asking.asked, batch["image_id"], answers, scenes, unread, strict=True
        )
    ]
    asking.learn([row.claimed for row in rows])
    return asking, rows


def with_originals(
    panel: Panel, rows: list[Examined], edited: Mapping[str, np.ndarray], agreement: float
) -> list[Examined]:
    """The rows; those with an old question of an edited image with what is said of the original. edited: the originals
    by image id."""
    chosen = [number for number, row in enumerate(rows) if row.image_id in edited and row.old and row.consensus]
    if not chosen:
        return rows
    images = np.stack([edited[rows[number].image_id] for number in chosen])
    texts = [rows[number].question for number in chosen]
    target, *references = (answer(images, texts) for answer in (panel.target, *panel.references))
    found = list(rows)
    for number, answer, said in zip(chosen, target, zip(*references, strict=True), strict=True):
        shared = consensus_of(said, agreement)
        found[number] = rows[number]._replace(original_consensus=shared, original_target_answer=answer)
    return found


def open_unseen(
    spec: tuple[str, ...], trained_on: tuple[str, ...], size: int, batch_size: int, seed: int
) -> SceneSource | ImageSource:
    """One pass over images that training did not see; scenes of the validation split where `spec` is empty, because
    discoveries become training data and the test split examines what was trained on them.

    Of images that training was given, however they were named then, only those that it held out are taken.
    """
    if not spec:
        return SceneSource("validation", 500 + seed, batch_size)  # seeds apart from those that training watched
    # Where the images are the same, which were held out is known without finding them twice.
    unseen = {"split": "heldout"} if spec == trained_on else {"leave_out": trained_places(trained_on)}
    opened: Any = partial(open_images, spec, size, seed=seed, num_epochs=1, **unseen)
    source = opened(batch_size=batch_size)
    # A batch is never larger than the images there are.
    return source if source.num_images >= batch_size else opened(batch_size=source.num_images)


def guide_of(config: AuditConfig, settings: TrainConfig) -> Guide | None:
    """What the run knows of its auditor's questions; None where every question is asked as it is drawn."""
    topics = settings.topics if config.topic_share else ()
    candidates = config.candidates if config.temperature else 1  # greedily drawn they are all the same
    if candidates == 1 and not topics:
        return None
    critic = read_critic(Path(config.out) / config.name)
    return Guide(critic, candidates, topics, config.topic_share)


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
    guide = guide_of(config, settings) if trained and not config.auditor else None
    panel, size = load_panel(trained, settings, config.temperature, batch_size, guide)
    spec = config.images or settings.images
    source = open_unseen(spec, settings.images, size, batch_size, config.seed)
    at_once = min(batch_size, source.num_images) if isinstance(source, ImageSource) else batch_size
    used_by_all(settings.probing, at_once, "--batch-size and --questions, give more --images,")
    limits = (config.questions, config.prompt_only_questions, settings.reward.agreement, config.seed)
    found = audit(panel, source, *limits)

    folder = Path(config.out) / config.name / "audit"
    kept = {
        "discoveries": [row for row in found.rows if row.claimed],
        "questions": [row for row in found.rows if row.consensus and not row.claimed],
    }
    if any(row.channel == "edit" for row in found.rows):
        kept["sensitivity"] = [row for row in found.rows if row.flipped]
    files = {name: str(folder / f"{name}.parquet") for name in kept}
    for name, rows in kept.items():
        originals = [found.originals.get(row.image_id) for row in rows]
        discoveries.write(files[name], rows, [found.pngs[row.image_id] for row in rows], config.seed, originals)
    summary = summarize(found.rows, found.prompt_only, oracle=not spec) | {
        "auditor": {"name": trained or models.auditor, "trained": bool(trained)},
        "models": models,
        "reference_health": reference_health(
            found.rows, models.target, models.references, settings.reward.agreement, oracle=not spec
        ),
        "verified_by": "verifier" if spec else "oracle",
        "image_source": spec or "scenes of the validation split",
        "skipped_images": source.skipped if isinstance(source, ImageSource) else {},
        "seed": config.seed,
        "training_seed": settings.seed,
        "instruction": settings.instruction,
        "probing": settings.probing,
        "agreement": settings.reward.agreement,
        "temperature": config.temperature,
        "candidates": guide.candidates if guide else 1,
        "topics": guide.topics if guide else (),
        "max_question_tokens": settings.max_question_tokens,
        "max_answer_tokens": settings.max_answer_tokens,
        "dtype": settings.dtype,
        "files": files,
        "settings": config,
    }
    write_json(folder / "summary.json", summary)
    print_report(summary, {name: len(rows) for name, rows in kept.items()}, folder)
    return summary


def print_report(summary: dict[str, Any], counts: dict[str, int], folder: Path) -> None:
    """The summary on the terminal, then where the files are."""
    models = summary["models"]
    names = [summary["auditor"]["name"], models.target, ", ".join(models.references)]
    print("auditor {}, target {}, references {}".format(*map(one_line, names)))
    if summary["candidates"] > 1 or summary["topics"]:
        print(
            f"the trained auditor asks the likeliest to fail of {summary['candidates']} questions an image, and of "
            f"{len(summary['topics'])} topics where they are worth it; the prompt-only auditor the first it draws"
        )
    for line in (*report_lines(summary), "", *health_lines(summary["reference_health"])):
        print(line)
    if summary["skipped_images"]:
        print(f"\nimages skipped: {reasons(summary['skipped_images'])}")
    wrote = ", ".join(f"{name}.parquet ({count} rows)" for name, count in counts.items())
    print(f"\nwritten to {one_line(folder)}: {wrote}, summary.json")
