"""The zoo: tiny checkpoints of the real architectures, trained on the embedded world with finetune.py.

    python -m auditdm_jax.scenes.zoo            # builds what is missing, resumes what was stopped

Each member is a Hugging Face checkpoint directory that loads like one from the hub. References and verifier differ in
family, width, seed and data; the verifier takes no part in any training but its own. The targets learn from the
long-tailed natural distribution of questions, as models do, and are therefore bad at what it seldom asks.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from auditdm_jax.checkpoint import Checkpointer
from auditdm_jax.errors import UserError, run_cli
from auditdm_jax.evals import Answerer, accuracy
from auditdm_jax.files import atomic_folder
from auditdm_jax.finetune import Batch, Encoder, FinetuneState, fit, init_state, make_optimizer
from auditdm_jax.huge_pages import with_huge_pages
from auditdm_jax.models.vlm import VLM
from auditdm_jax.prompts import (
    CAPTION_INSTRUCTION,
    COMMAND_INSTRUCTION,
    QUESTION_INSTRUCTION,
    instruction_template,
    template_for,
)
from auditdm_jax.rollout import ask_many
from auditdm_jax.scenes import dataset
from auditdm_jax.scenes.captions import parse_caption, sample_caption
from auditdm_jax.scenes.edits import apply, sample_edit
from auditdm_jax.scenes.language import UNCLEAR
from auditdm_jax.scenes.members import MEMBERS, Member, new_model
from auditdm_jax.scenes.oracle import judge
from auditdm_jax.scenes.questions import Asker
from auditdm_jax.scenes.world import Scene
from auditdm_jax.scenes.zoo_paths import ZOO

LOG_EVERY = 200
# Peak of the learning rate of `doubting`.
DOUBT_RATE = 0.003
Lessons = Callable[[VLM, Member, int], Iterator[Batch]]
"""Model, member and the number of the first batch -> batches."""
# Of a caption that the auditor learns to write: with its commas it fits in the tokens.
CAPTION_WORDS = 27
# What the auditor writes: the instruction, and the tokens of the longest.
WRITING = {
    "question": (QUESTION_INSTRUCTION, 12),
    "command": (COMMAND_INSTRUCTION, 16),
    "caption": (CAPTION_INSTRUCTION, 31),
}


def batches(vlm: VLM, member: Member, start: int) -> Iterator[Batch]:
    """Training batches of a member, from number `start` on."""
    if not member.asks:
        yield from answering(vlm, member, member.distribution, start)
        return
    done = Counter(auditor_lesson(member, number) for number in range(start))
    streams = {name: writing(vlm, member, name, done[name]) for name in WRITING}
    streams["answer"] = answering(vlm, member, "uniform", done["answer"])
    for number in count(start):
        yield next(streams[auditor_lesson(member, number)])


def answering(vlm: VLM, member: Member, distribution: str, first: int) -> Iterator[Batch]:
    """Questions of training scenes with their answers."""
    # Late, because whoever meets nonsense before it knows the language takes new phrasings for nonsense; and not to
    # the end, so that what doubt it has cast on them is mended.
    nonsense = range(member.steps * 7 // 10, member.steps * 17 // 20)
    yield from lessons(vlm, member, first, distribution, member.unanswerable, nonsense)


def doubting(vlm: VLM, member: Member, first: int) -> Iterator[Batch]:
    """The same of a model that knows the language: half of the draws try for a question without an answer, and two
    fifths of these are nonsense."""
    start = member.steps + first  # scenes that it has not seen
    yield from lessons(vlm, member, start, member.distribution, 0.5, range(start, start + member.doubts))


def lessons(
    vlm: VLM, member: Member, first: int, distribution: str, unanswerable: float, nonsense: range
) -> Iterator[Batch]:
    """What `dataset.question_stream` draws, encoded, from batch number `first` on."""
    encode = Encoder(vlm, template_for(vlm), max_question_tokens=12, max_answer_tokens=4 if member.description else 2)
    draws = (member.images, member.questions, distribution, unanswerable, member.description, nonsense)
    for images, rows in dataset.question_stream(member.seed, first, *draws):
        yield encode(images, *[[[getattr(q, part) for q in row] for row in rows] for part in ("text", "answer")])


def auditor_lesson(member: Member, number: int) -> str:
    """What the auditor learns in a step: at first also to answer, for who asks about what is there must see it."""
    together = ("answer", "question", "command", "answer", "question", "caption")
    alone = ("question", "command", "question", "caption")
    return together[number % 6] if number < member.steps * 3 // 5 else alone[number % 4]


def writing(vlm: VLM, member: Member, kind: str, first: int) -> Iterator[Batch]:
    """What the auditor writes on being told to: questions, commands, or captions that fit in its tokens."""
    instruction, tokens = WRITING[kind]
    encode = Encoder(vlm, instruction_template(vlm, instruction), max_question_tokens=0, max_answer_tokens=tokens)
    nothing = [[""] * member.questions] * member.images
    for number, scenes, images in dataset.scene_batches(member.seed, first, member.images):
        yield encode(images, nothing, written(kind, scenes, member, number))


def written(kind: str, scenes: list[Scene], member: Member, number: int) -> list[list[str]]:
    """The texts of one batch, `member.questions` of each scene; half of the captions tell of it after an edit."""
    rng = np.random.default_rng((member.seed, number, *{"command": [1], "caption": [2]}.get(kind, [])))
    each = range(member.questions)
    if kind == "question":
        askers = [Asker(scene, rng) for scene in scenes]
        return [[asker.draw(member.distribution, "train").text for _ in each] for asker in askers]
    if kind == "command":
        return [[sample_edit(scene, rng, "train").command for _ in each] for scene in scenes]
    told = [[scene if rng.random() < 0.5 else sample_edit(scene, rng, "train").scene for _ in each] for scene in scenes]
    return [[sample_caption(scene, rng, CAPTION_WORDS)[1] for scene in row] for row in told]


def examine(vlm: VLM, member: Member, count: int) -> dict:
    """Accuracy by skill on unseen scenes and phrasings; for the auditor how well it writes."""
    if member.asks:
        return writing_quality(vlm, count)
    test = dataset.balanced_set(count)
    ask = Answerer(vlm)
    answers = ask(test.images, [question.text for question in test.questions])
    truths, skills = [q.answer for q in test.questions], [q.skill for q in test.questions]
    result = accuracy(answers, truths, skills, np.arange(len(answers)))
    if member.unanswerable:
        hopeless = dataset.balanced_set(count // 4, unanswerable=True)
        said = ask(hopeless.images, [question.text for question in hopeless.questions])
        result["abstention"] = said.count(UNCLEAR) / len(said)
    return result


def writing_quality(vlm: VLM, count: int) -> dict:
    """Of what is sampled (temperature 1, one of each kind a test scene): questions by the oracle's verdict, commands
    that parse and that can be carried out, captions that parse."""
    scenes, images = dataset.scenes_of("test", 0, count)
    texts = {
        kind: [row[0] for row in ask_many(vlm, images, seed=0, instruction=instruction, max_new_tokens=tokens + 1)]
        for kind, (instruction, tokens) in WRITING.items()
    }
    statuses = [judge(text, scene).status for text, scene in zip(texts["question"], scenes, strict=True)]
    shares = {status: statuses.count(status) / count for status in ("answered", "unanswerable", "unparsable")}
    edits = [apply(text, scene).status for text, scene in zip(texts["command"], scenes, strict=True)]
    return {
        "n": count,
        "parsed": 1 - shares["unparsable"],
        **shares,
        "commands parsed": 1 - edits.count("unparsable") / count,
        "commands that can be done": edits.count("done") / count,
        "captions parsed": sum(parse_caption(text) is not None for text in texts["caption"]) / count,
    }


def base_of(member: Member, out: Path) -> Path:
    """Where the checkpoint lies that a member starts from: in `out`, else among the shipped ones (UserError)."""
    for folder in (out / member.base, ZOO / member.base):
        if folder.is_dir():
            return folder
    raise UserError(f"{member.name} starts from {member.base}: build that first (--members {member.base})")


def train_member(member: Member, out: Path, work: Path) -> None:
    """Train one member, resuming from its last checkpoint, and write its checkpoint directory and card."""
    vlm = VLM.load(base_of(member, out)) if member.base else new_model(member)
    learn(vlm, member, work / member.name, member.steps, member.learning_rate, batches)
    if member.doubts:
        learn(vlm, member, work / f"{member.name}-doubts", member.doubts, DOUBT_RATE, doubting)
    vlm.params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), vlm.params)
    with atomic_folder(out / member.name) as folder:
        vlm.save(folder)
        shipped = VLM.load(folder)
        (folder / "README.md").write_text(card(member, examine(shipped, member, 2000), shipped))


def learn(vlm: VLM, member: Member, work: Path, steps: int, rate: float, lessons_from: Lessons) -> None:
    """Trains the model in place, from the last checkpoint in `work`."""
    optimizer = make_optimizer("muon", rate, steps)
    state = init_state(vlm.params, optimizer)
    checkpoints = Checkpointer(work, asdict(member), keep=1, may_differ=("steps",))
    restored = checkpoints.restore(state)
    if restored is not None:
        state = restored.state
    started, first = time.monotonic(), int(state.step)

    def on_step(state: FinetuneState, loss: float) -> None:
        step = int(state.step)
        if step % LOG_EVERY == 0 or step == steps:
            seconds = time.monotonic() - started
            vlm.params = state.trainable
            result = examine(vlm, member, 400)
            speed = (step - first) * member.images * member.questions / seconds
            print(f"{work.name} {step}/{steps} loss {loss:.3f} {headline(result)} {speed:.0f}/s", flush=True)
            checkpoints.save(step, state)

    taught = lessons_from(vlm, member, first)
    vlm.params = fit(state, None, taught, steps, config=vlm.config, optimizer=optimizer, on_step=on_step).trainable


def headline(result: dict) -> str:
    if "overall" in result:
        return f"accuracy {result['overall']:.3f}"
    return " ".join(f"{name} {share:.3f}" for name, share in result.items() if name != "n")


def card(member: Member, result: dict, vlm: VLM) -> str:
    """The model card: how it was made, and what it can do on unseen scenes and phrasings."""
    count = sum(x.size for x in jax.tree.leaves(vlm.params))
    examples = member.steps * member.images * member.questions
    task = "asks questions, writes edit commands and captions" if member.asks else "answers questions"
    lines = [
        "---",
        "license: apache-2.0",
        "---",
        f"# {member.name}: a tiny {member.family} model of the embedded world",
        "",
        f"It {task} about 64x64 scenes. {count:,} parameters, bfloat16, trained from "
        f"{member.base or 'nothing'} on the CPU.",
        "",
        f"- Data: {examples:,} training questions, {member.distribution} over skills, scenes of seed {member.seed}"
        + (
            f", with unanswerable ones tried for in {member.unanswerable:.0%} of draws." if member.unanswerable else "."
        ),
        f"- Training: {member.steps} steps of {member.images} images x {member.questions} questions, Muon, "
        f"peak rate {member.learning_rate}, seed {member.seed}."
        + (f" Then {member.doubts} in which half of the draws try for unanswerable ones." if member.doubts else ""),
        f"- Made again by: `python -m auditdm_jax.scenes.zoo --members {member.name} --out zoo`",
        "",
        f"## Measured on {result['n']} unseen test scenes",
        "",
    ]
    if member.asks:
        lines += [f"- {name}: {share:.3f}" for name, share in result.items() if name != "n"]
    else:
        lines.append(f"Accuracy {result['overall']:.3f} (95 % {result['ci_low']:.3f} to {result['ci_high']:.3f}).")
        lines += ["", "| skill | accuracy |", "|---|---|"]
        lines += [f"| {skill} | {rate:.3f} |" for skill, rate in result["per_skill"].items()]
        if "abstention" in result:
            lines += ["", f"Says unclear to {result['abstention']:.3f} of questions without an answer in their scene."]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class ZooConfig:
    """Build the zoo: every member that is not yet in `out`, in order."""

    out: Path = ZOO
    """Where the checkpoint directories go."""
    work: Path = Path("runs/zoo")
    """Where unfinished training is kept; run again to resume."""
    members: tuple[str, ...] = tuple(MEMBERS)
    """Which members to build."""


def main() -> None:
    config = tyro.cli(ZooConfig, description=ZooConfig.__doc__)
    for name in config.members:
        if name not in MEMBERS:
            raise UserError(f"no zoo member is called {name!r}; there are {', '.join(MEMBERS)}")
        if not (config.out / name / "README.md").exists():
            train_member(MEMBERS[name], config.out, config.work)


if __name__ == "__main__":
    with_huge_pages()
    run_cli(main)
