"""The zoo: tiny checkpoints of the real architectures, trained on the embedded world with finetune.py.

    python -m auditdm_jax.scenes.zoo            # builds what is missing, resumes what was stopped

Each member is a Hugging Face checkpoint directory that loads like one from the hub. References and verifier differ in
family, width, seed and data; the verifier takes no part in any training but its own. The targets learn from the
long-tailed natural distribution of questions, as models do, and are therefore bad at what it seldom asks.
"""

import time
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro

from auditdm_jax.checkpoint import Checkpointer
from auditdm_jax.errors import UserError, run_cli
from auditdm_jax.evals import Answerer, accuracy
from auditdm_jax.files import atomic_folder
from auditdm_jax.finetune import Encoder, FinetuneState, fit, init_state, make_optimizer
from auditdm_jax.models.vlm import VLM
from auditdm_jax.prompts import QUESTION_INSTRUCTION, instruction_template, template_for
from auditdm_jax.rollout import ask_many
from auditdm_jax.scenes import dataset
from auditdm_jax.scenes.language import UNCLEAR
from auditdm_jax.scenes.members import MEMBERS, Member, new_model
from auditdm_jax.scenes.oracle import judge
from auditdm_jax.scenes.zoo_paths import ZOO

LOG_EVERY = 200


def batches(vlm: VLM, member: Member, start: int):
    """Training batches of a member, from number `start` on; an asking one answers and asks in turn, then only asks."""
    encode = Encoder(vlm, template_for(vlm), max_question_tokens=12, max_answer_tokens=4 if member.description else 2)

    def answering(first: int):
        shares = ("uniform" if member.asks else member.distribution, member.unanswerable, member.description)
        # Late, because whoever meets nonsense before it knows the language takes new phrasings for nonsense; and not to
        # the end, so that what doubt it has cast on them is mended.
        nonsense = range(member.steps * 7 // 10, member.steps * 17 // 20)
        for images, rows in dataset.question_stream(
            member.seed, first, member.images, member.questions, *shares, nonsense
        ):
            yield encode(images, *[[[getattr(q, part) for q in row] for row in rows] for part in ("text", "answer")])

    if not member.asks:
        yield from answering(start)
        return
    together = member.steps * 2 // 3
    ask = Encoder(vlm, instruction_template(vlm, QUESTION_INSTRUCTION), max_question_tokens=0, max_answer_tokens=12)

    def asking(first: int):
        for images, rows in dataset.question_stream(
            member.seed, first, member.images, member.questions, member.distribution
        ):
            yield ask(images, [[""] * member.questions] * len(rows), [[q.text for q in row] for row in rows])

    answers, questions = answering((min(start, together) + 1) // 2), asking(start - (min(start, together) + 1) // 2)
    for number in count(start):
        yield next(questions if number % 2 or number >= together else answers)


def examine(vlm: VLM, member: Member, count: int) -> dict:
    """Accuracy by skill on unseen scenes and phrasings; for the auditor the share of its questions that parse."""
    if member.asks:
        return question_quality(vlm, count)
    test = dataset.balanced_set(count)
    ask = Answerer(vlm)
    answers = ask(test.images, [question.text for question in test.questions])
    result = accuracy(answers, [q.answer for q in test.questions], [q.skill for q in test.questions])
    if member.unanswerable:
        hopeless = dataset.balanced_set(count // 4, unanswerable=True)
        said = ask(hopeless.images, [question.text for question in hopeless.questions])
        result["abstention"] = said.count(UNCLEAR) / len(said)
    return result


def question_quality(vlm: VLM, count: int) -> dict:
    """Share of sampled questions (temperature 1, one a test scene) by the oracle's verdict."""
    scenes, images = dataset.scenes_of("test", 0, count)
    questions = [row[0] for row in ask_many(vlm, images, seed=0)]
    statuses = [judge(question, scene).status for question, scene in zip(questions, scenes, strict=True)]
    shares = {status: statuses.count(status) / count for status in ("answered", "unanswerable", "unparsable")}
    return {"n": count, "parsed": 1 - shares["unparsable"], **shares}


def train_member(member: Member, out: Path, work: Path) -> None:
    """Train one member, resuming from its last checkpoint, and write its checkpoint directory and card."""
    vlm = VLM.load(out / member.base) if member.base else new_model(member)
    optimizer = make_optimizer("muon", member.learning_rate, member.steps)
    state = init_state(vlm.params, optimizer)
    checkpoints = Checkpointer(work / member.name, asdict(member), keep=1, may_differ=("steps",))
    restored = checkpoints.restore(state)
    if restored is not None:
        state = restored.state
    started, first = time.monotonic(), int(state.step)

    def on_step(state: FinetuneState, loss: float) -> None:
        step = int(state.step)
        if step % LOG_EVERY == 0 or step == member.steps:
            seconds = time.monotonic() - started
            vlm.params = state.trainable
            result = examine(vlm, member, 400)
            rate = (step - first) * member.images * member.questions / seconds
            print(f"{member.name} {step}/{member.steps} loss {loss:.3f} {headline(result)} {rate:.0f}/s", flush=True)
            checkpoints.save(step, state)

    state = fit(
        state, None, batches(vlm, member, first), member.steps, config=vlm.config, optimizer=optimizer, on_step=on_step
    )
    vlm.params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.trainable)
    with atomic_folder(out / member.name) as folder:
        vlm.save(folder)
        shipped = VLM.load(folder)
        (folder / "README.md").write_text(card(member, examine(shipped, member, 2000), shipped))


def headline(result: dict) -> str:
    return f"accuracy {result['overall']:.3f}" if "overall" in result else f"parsed {result['parsed']:.3f}"


def card(member: Member, result: dict, vlm: VLM) -> str:
    """The model card: how it was made, and what it can do on unseen scenes and phrasings."""
    count = sum(x.size for x in jax.tree.leaves(vlm.params))
    examples = member.steps * member.images * member.questions
    task = "asks questions" if member.asks else "answers questions"
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
        f"peak rate {member.learning_rate}, seed {member.seed}.",
        f"- Made again by: `python -m auditdm_jax.scenes.zoo --members {member.name} --out zoo`",
        "",
        f"## Measured on {result['n']} unseen test scenes",
        "",
    ]
    if member.asks:
        lines += [f"- {name}: {result[name]:.3f}" for name in ("parsed", "answered", "unanswerable", "unparsable")]
    else:
        lines.append(f"Accuracy {result['overall']:.3f} (95 % {result['ci_low']:.3f} to {result['ci_high']:.3f}).")
        lines += ["", "| skill | accuracy |", "|---|---|"]
        lines += [f"| {skill} | {rate:.3f} |" for skill, rate in result["per_skill"].items()]
        if result.get("abstention"):
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
    run_cli(main)
