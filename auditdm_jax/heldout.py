"""[host] Claimed and verified success on images held out from training."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from auditdm_jax.answers import text_answer_id
from auditdm_jax.data import Source
from auditdm_jax.models.vlm import VLM
from auditdm_jax.prompts import texts_of
from auditdm_jax.scenes.oracle import judge
from auditdm_jax.scenes.parser import scenes_in
from auditdm_jax.state import AuditState

DRAWS = 2**31
BATCHES = 2
"""Of images in a probe: in one batch the questions of one odd image can be 5 % of all."""


def probe(
    step: Callable, states: Sequence[AuditState], held_out: Sequence[Source], auditor: VLM
) -> list[dict[str, float]]:
    """Claimed and, for scenes, verified success of each run, means over batches.

    step: of several runs, as `training.one_run` makes one, without an update or with one that is thrown away.
    held_out: the batches of each.
    """
    probes = []
    for draw in range(BATCHES):
        batches = [next(source) for source in held_out]
        done = step([for_probe(state, draw) for state in states], [batch["image"] for batch in batches])
        rows = []
        for batch, (_, metrics, record) in zip(batches, done, strict=True):
            shares = verified(record, batch, auditor) if "scene" in batch else {}
            row = {f"heldout/{name}": value for name, value in shares.items()}
            rows.append(row | {"heldout/claimed": float(metrics["outcome/claimed"])})
        probes.append(rows)
    return [{name: sum(row[name] for row in rows) / BATCHES for name in rows[0]} for rows in zip(*probes, strict=True)]


def for_probe(state: AuditState, draw: int = 0) -> AuditState:
    """With draws apart from those of the next step, and of another probe; a copy, for a step donates what it gets."""
    trained = jax.tree.map(jnp.copy, state.trained)
    return replace(state, trained=replace(trained, key=jax.random.fold_in(trained.key, DRAWS + draw)))


def verified(record: dict, batch: dict, auditor: VLM) -> dict[str, float]:
    """For scenes: what the oracle says of a batch of questions.

    verified: target wrong and consensus right; unanswerable: without an answer; unreadable: of new images that show no
    scene. gap: claimed minus verified, of what can be read. reward_unanswerable, reward_unparsable: share of the reward
    that such questions have: what they speak of is absent or ambiguous; they are none of this world's questions, which
    may make sense all the same.
    """
    ids, mask = np.asarray(record["question_ids"]), np.asarray(record["question_mask"])
    names = ("target_id", "consensus_id", "claimed", "reward")
    target, consensus, claimed, reward = (np.asarray(record[name]) for name in names)
    counts = dict.fromkeys(("answered", "unanswerable", "unparsable", "unreadable", "verified"), 0)
    skills, read, earned = set(), 0, Counter[str]()
    generations = claimed.shape[1]
    seen = [scene for scene in batch["scene"] for _ in range(generations)]
    if "images" in record:  # What is new is read back; what shows no scene of this world any more is not verified.
        images = np.asarray(record["images"])
        new = np.flatnonzero((images != np.repeat(batch["image"], generations, axis=0)).any((1, 2, 3)))
        for row, scene in zip(new.tolist(), scenes_in(images[new]), strict=True):
            seen[row] = scene
    for i in range(len(claimed)):
        for g, text in enumerate(texts_of(auditor.tokenizer, ids[i], mask[i])):
            scene = seen[i * generations + g]
            if scene is None:
                counts["unreadable"] += 1
                continue
            verdict = judge(text, scene)
            counts[verdict.status] += 1
            read += int(claimed[i, g])
            earned[verdict.status] += reward[i, g]
            if verdict.status == "answered" and claimed[i, g]:
                truth = text_answer_id(verdict.answer)
                if consensus[i, g] == truth != target[i, g]:
                    counts["verified"] += 1
                    skills.add(verdict.skill)
    total = claimed.size
    shares = {f"oracle/{name}": count / total for name, count in counts.items()}
    shares |= {"oracle/gap": (read - counts["verified"]) / total}
    for name in ("unanswerable", "unparsable"):
        shares[f"oracle/reward_{name}"] = float(earned[name] / max(reward.sum(), 1e-9))
    return shares | {"skills": len(skills)}
