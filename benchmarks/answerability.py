"""How well scores without an oracle tell whether a question has an answer, and whether the references are right.

python benchmarks/answerability.py                                      # the auditor before training
python benchmarks/answerability.py --auditors auditor runs/default/auditor

Prints Markdown tables of AUROC [95 % interval] against the oracle, for questions with a consensus: of all three
references, and of one alone, as a reward with a single reference would have it. The world's own paraphrases are a
yardstick of what rephrasing could do: no other world has them.
"""

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import tyro

from auditdm_jax.answerability import IMAGE_CHANGES, REPHRASINGS, agreement, auroc
from auditdm_jax.config import AuditConfig, Models, TrainConfig
from auditdm_jax.errors import run_cli
from auditdm_jax.evals import Answerer
from auditdm_jax.outcomes import consensus_of, vote
from auditdm_jax.rollout import ask_many
from auditdm_jax.scenes.dataset import SceneSource
from auditdm_jax.scenes.language import FORMS, LEADS, fill, parse
from auditdm_jax.scenes.oracle import judge
from auditdm_jax.scenes.zoo_paths import load_model

SAMPLES = 4
FEWEST = 10  # of either kind: with fewer the interval is not to be trusted
MODELS, SETTINGS = Models(), TrainConfig()


def paraphrase(question: str) -> str:
    """The other form of the world's question; what is none stays as it is."""
    found = parse(question)
    if found is None:
        return question
    lead = next((lead for lead in LEADS if lead and question.startswith(f"{lead} ")), "")
    return next(text for form in FORMS[found[0]] if (text := fill(lead, form, found[1])) != question)


def further_answers(answerer: Answerer, images: np.ndarray, questions: Sequence[str], seed: int) -> dict[str, list]:
    """By name of a score: lists of N answers of one reference."""
    rephrased: dict[str, Callable[[str], str]] = {**REPHRASINGS, "paraphrase of the world": paraphrase}
    found = {name: [answerer(images, [change(q) for q in questions])] for name, change in rephrased.items()}
    found |= {name: [answerer(change(images), questions)] for name, change in IMAGE_CHANGES.items()}
    drawn = answerer.answers(images, questions, SAMPLES, 1.0, seed=seed)
    return found | {"self-consistency": [list(answers) for answers in zip(*drawn, strict=True)]}


def table(title: str, consensus: list[str], scores: dict[str, np.ndarray], verdicts: list) -> None:
    """One score a row; questions without a consensus are left out."""
    kept = np.array([bool(answer) for answer in consensus])
    parsed, answered = (
        np.array([verdict.status in statuses for verdict in verdicts])
        for statuses in (("answered", "unanswerable"), ("answered",))
    )
    right = answered & np.array([vote(v.answer) == vote(said) for v, said in zip(verdicts, consensus, strict=True)])
    # What the oracle cannot read may make sense all the same: it is not wrong.
    tasks = {"parses": (kept, parsed), "has an answer": (kept & parsed, answered)}
    tasks |= {"consensus right": (kept & parsed, right), "right, of those with an answer": (kept & answered, right)}
    print(f"\n{title}\n")
    counts = (f"{name} ({label[rows].sum()} of {rows.sum()})" for name, (rows, label) in tasks.items())
    print(f"| score | {' | '.join(counts)} |\n|---|{'---|' * len(tasks)}")
    for name, score in scores.items():
        cells = []
        for rows, label in tasks.values():
            area, low, high = auroc(score[rows], label[rows])
            few = min(label[rows].sum(), (~label[rows]).sum()) < FEWEST
            cells.append("too few" if few else f"{area:.2f} [{low:.2f}, {high:.2f}]")
        print(f"| {name} | {' | '.join(cells)} |")


def main(auditors: tuple[str, ...] = (MODELS.auditor,), questions: int = 1000, seed: int = 0) -> None:
    """auditors: zoo names or directories; questions: of each, at the temperature of training."""
    batch = next(SceneSource("validation", AuditConfig().seed + 900 + seed, questions))
    images, scenes = batch["image"], batch["scene"]
    references = {name: Answerer(load_model(name)) for name in MODELS.references}
    verifier = Answerer(load_model(MODELS.verifier))
    joined = lambda lists: list(chain.from_iterable(lists))  # noqa: E731
    for auditor in auditors:
        tokens = SETTINGS.max_question_tokens
        asked = [text for (text,) in ask_many(load_model(auditor), images, seed, max_new_tokens=tokens)]
        verified = verifier(images, asked)
        said = {name: answerer(images, asked) for name, answerer in references.items()}
        further = {name: further_answers(answerer, images, asked, seed) for name, answerer in references.items()}
        verdicts = [judge(question, scene) for question, scene in zip(asked, scenes, strict=True)]
        for panel in (MODELS.references, *((name,) for name in MODELS.references[:2])):
            consensus = [consensus_of(answers, 1.0) for answers in zip(*(said[n] for n in panel), strict=True)]
            pooled = {kind: joined(further[n][kind] for n in panel) for kind in further[panel[0]]}
            pooled["rephrasing, all three"] = joined(pooled[kind] for kind in REPHRASINGS)
            pooled["image, all three"] = joined(pooled[kind] for kind in IMAGE_CHANGES)
            pooled["verifier"] = [verified]
            scores = {kind: agreement(consensus, answers) for kind, answers in pooled.items()}
            groups = ("rephrasing, all three", "image, all three", "self-consistency", "verifier")
            scores["self-consistency and verifier"] = np.mean([scores[kind] for kind in groups[2:]], axis=0)
            scores["all of these"] = np.mean([scores[kind] for kind in groups], axis=0)
            table(f"{auditor}, seed {seed}, {' + '.join(panel)}", consensus, scores, verdicts)


if __name__ == "__main__":
    run_cli(lambda: tyro.cli(main))
