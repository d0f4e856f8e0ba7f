"""audit.py: on scenes with answerers that err as they are told, the audit finds exactly those errors."""

import json
import zlib
from collections import Counter
from dataclasses import replace

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_zoo import save_pictures

from auditdm_jax import audit as module
from auditdm_jax import discoveries
from auditdm_jax.asking import Asking, Panel
from auditdm_jax.audit import audit, main, open_unseen
from auditdm_jax.config import AuditConfig, Models, TrainConfig
from auditdm_jax.critic import FILE, ignorant, write_critic
from auditdm_jax.errors import UserError
from auditdm_jax.files import write_json
from auditdm_jax.outcomes import Asked
from auditdm_jax.reward import BEGINNINGS
from auditdm_jax.scenes.dataset import scenes_of
from auditdm_jax.scenes.oracle import judge
from auditdm_jax.scenes.parser import read_scenes
from auditdm_jax.scenes.render import render

WEATHER, COUNT, NONSENSE = "what is the weather?", "how many objects are there?", "zebra zebra"
UNSEEN = open_unseen((), (), 64, 1, seed=0)  # the scenes that an audit of seed 0 shows
FIRST = UNSEEN.first


class Oracle:
    """Answers from the scene graphs, except that the answers to the questions in `errors` are replaced."""

    def __init__(self, size: int, **errors: str):
        scenes, images = scenes_of(UNSEEN.split, FIRST, size)
        self.scenes = {zlib.crc32(image): scene for image, scene in zip(images, scenes, strict=True)}
        self.errors = {"weather": WEATHER, "count": COUNT}
        self.errors = {self.errors[name]: answer for name, answer in errors.items()}

    def __call__(self, images, questions):
        scenes = (self.scenes[zlib.crc32(image)] for image in images)
        return [
            self.errors.get(question, judge(question, scene).answer)
            for question, scene in zip(questions, scenes, strict=True)
        ]


def asks(*questions: str):
    """Asks the given questions in turn; every batch begins with the first."""
    return lambda images, key: Asking([Asked("", questions[i % len(questions)]) for i in range(len(images))], images)


def panel(count: int) -> Panel:
    """The target takes every weather for foggy; the ensemble shares one wrong count."""
    shared = Oracle(count, count="99")
    return Panel(
        asks(WEATHER, COUNT, WEATHER, NONSENSE),
        asks(COUNT, NONSENSE),
        Oracle(count, weather="foggy"),
        (shared, shared),
        Oracle(count),
    )


def test_audit_finds_what_the_answerers_get_wrong():
    found = audit(panel(12), open_unseen((), (), 64, 4, seed=0), 10, 6, agreement=1.0, seed=0)
    assert Counter(row.outcome for row in found.rows) == {"claimed": 8, "unparsable": 2}
    assert [row.question for row in found.rows if row.verified] == [WEATHER] * 5
    assert [row.outcome for row in found.prompt_only] == ["claimed", "unparsable"] * 3
    assert not any(row.verified for row in found.prompt_only)
    assert [row.image_id for row in found.rows] == [f"{UNSEEN.split}-{FIRST + i}" for i in range(10)]
    assert set(found.pngs) == {row.image_id for row in found.rows if row.consensus}


def test_who_asks_is_told_what_came_of_a_batch_before_the_next():
    said, whole = [], panel(12)

    def told(images, key):
        said.append("asked")
        return whole.auditor(images, key)._replace(learn=said.append)

    found = audit(whole._replace(auditor=told), open_unseen((), (), 64, 4, seed=0), 8, 1, agreement=1.0, seed=0)
    assert said == ["asked", [True, True, True, False]] * 2
    assert [row.claimed for row in found.rows] == said[1] + said[3]


def test_both_auditors_draw_with_the_same_key_and_batches_with_others():
    keys = {"trained": [], "before": []}

    def recording(name):
        return lambda images, key: (
            keys[name].append(np.asarray(jax.random.key_data(key)).tolist()) or asks(WEATHER)(images, key)
        )

    recorded = panel(8)._replace(auditor=recording("trained"), prompt_only=recording("before"))
    audit(recorded, open_unseen((), (), 64, 4, seed=0), 8, 8, agreement=1.0, seed=0)
    assert keys["trained"] == keys["before"]
    assert keys["trained"][0] != keys["trained"][1]


def test_without_a_trained_auditor_the_two_are_one():
    alone = panel(4)._replace(prompt_only=None)
    found = audit(alone, open_unseen((), (), 64, 4, seed=0), 4, 2, agreement=1.0, seed=0)
    assert found.prompt_only == found.rows


@pytest.fixture
def finished_run(tmp_path, monkeypatch):
    """A run whose models are those of `panel`."""
    write_json(
        tmp_path / "runs" / "r" / "config.json", TrainConfig(name="r", seed=7, models=Models(references=("a", "b")))
    )
    write_json(tmp_path / "runs" / "r" / "auditor" / "config.json", {})
    write_critic(tmp_path / "runs" / "r", ignorant(1, 8))
    monkeypatch.setattr(module, "load_panel", lambda *_: (panel(48), 64))
    return tmp_path / "runs" / "r"


def test_main_writes_and_prints_what_was_found(finished_run, capsys):
    config = AuditConfig(name="r", out=str(finished_run.parent), questions=40, prompt_only_questions=10, batch_size=16)
    returned = main(config)
    summary = json.loads((finished_run / "audit" / "summary.json").read_text())
    assert summary["verified_success_rate"] == returned["verified_success_rate"] == 0.5
    assert (summary["images"], summary["claimed_success_rate"]) == (40, 0.75)
    assert (summary["claimed"]["count"], summary["verified"]["count"]) == (30, 20)
    assert summary["verified"]["ci_low"] < 0.5 < summary["verified"]["ci_high"]
    assert summary["outcomes"]["unparsable"] == 10
    before = summary["prompt_only"]
    assert (before["images"], before["claimed_success_rate"], before["verified_success_rate"]) == (10, 0.5, 0)
    assert summary["skills"][0] | {"rate": 1} == summary["skills"][0]  # every weather question fails
    assert [skill["name"] for skill in summary["skills"]] == ["weather", "counting"]
    assert summary["failure_types"][0]["name"] == "weather/any"
    assert summary["skills_found"] == 1
    assert (summary["saturation"]["types"]["n"], summary["saturation"]["types"]["seen"]) == (20, 1)
    wrong = summary["reference_health"]["consensus_wrong"]
    assert (wrong["count"], wrong["n"]) == (10, 30)  # the ensemble shares one wrong count
    assert summary["weaknesses"] == ["weather"]  # the shared wrong count is the ensemble's
    assert (summary["weakness_evidence"][0]["n"], summary["weakness_evidence"][0]["excess"]) == (20, 1)
    assert (summary["seed"], summary["training_seed"], summary["verified_by"]) == (0, 7, "oracle")
    assert summary["auditor"] == {"name": str(finished_run / "auditor"), "trained": True}

    found = discoveries.read(summary["files"]["discoveries"], 64)
    written = pq.read_table(summary["files"]["discoveries"]).to_pylist()
    assert (len(found.rows), sum(row["verified"] for row in written)) == (30, 20)
    scenes, images = scenes_of(UNSEEN.split, FIRST, 40)
    for image, row, oracle in zip(found.images, found.rows, (row["oracle_answer"] for row in written), strict=True):
        place = int(row.image_id.removeprefix(f"{UNSEEN.split}-")) - FIRST
        np.testing.assert_array_equal(image, images[place])
        assert oracle == judge(row.question, scenes[place]).answer
    with pytest.raises(UserError, match="it is empty"):  # every question with a consensus was claimed
        discoveries.read(summary["files"]["questions"], 64)

    printed = capsys.readouterr().out
    assert (summary["candidates"], tuple(summary["topics"])) == (8, BEGINNINGS)
    assert "asks the likeliest to fail of 8 questions an image, and of 11 topics where they are worth it" in printed
    assert "prompt-only      10   0.500 [0.237, 0.763]" in printed
    assert "trained          40   0.750 [0.598, 0.858]" in printed
    assert "1 skills with 10 or more verified failures" in printed
    assert "weaknesses, where it errs more than every reference beyond chance: weather" in printed
    assert "20 / 20" in printed
    assert "0.000 [0.000, 0.161] of failures to come are of a new type (0.000 type or answer): keep going" in printed
    assert "the oracle contradicts 10 of 30 shared answers" in printed
    assert "discoveries.parquet (30 rows), questions.parquet (0 rows)" in printed


def test_who_guides_an_audit(finished_run, monkeypatch):
    """The run's critic its own auditor; nobody another auditor, or one that asks as it draws."""
    given = []
    monkeypatch.setattr(module, "load_panel", lambda *args: (given.append(args[-1]), (panel(8), 64))[1])
    config = AuditConfig(name="r", out=str(finished_run.parent), questions=8, batch_size=8)
    main(config)
    assert (given[-1].candidates, given[-1].critic.shape) == (8, (1, 9))
    assert (given[-1].topics, given[-1].share) == (BEGINNINGS, 0.08)
    main(replace(config, topic_share=0))
    assert given[-1].topics == ()
    main(replace(config, auditor="another"))
    assert given[-1] is None
    (finished_run / FILE).unlink()
    with pytest.raises(UserError, match=r"r/critic.safetensors is missing; train again, or ask as drawn"):
        main(config)
    main(replace(config, candidates=1, topic_share=0))
    assert given[-1] is None


def test_questions_that_did_not_fail_go_to_their_own_file(finished_run, monkeypatch):
    good = panel(40)._replace(target=Oracle(40, weather="unclear", count="99"))
    monkeypatch.setattr(module, "load_panel", lambda *_: (good, 64))
    summary = main(AuditConfig(name="r", out=str(finished_run.parent), questions=8, batch_size=8))
    assert summary["outcomes"]["target_unanswered"] == 4
    found = discoveries.read(summary["files"]["questions"], 64)
    assert [row.question for row in found.rows] == [WEATHER, COUNT, WEATHER] * 2
    assert not any(pq.read_table(summary["files"]["questions"])["claimed"].to_pylist())


def test_the_verifier_judges_other_images(finished_run, monkeypatch, tmp_path, capsys):
    folder = save_pictures(tmp_path / "photos", 6)
    say = lambda *words: lambda images, questions: [words[int(i[0, 0, 0]) % len(words)] for i in images]  # noqa: E731
    others = Panel(asks("how many dogs are there?"), None, say("1"), (say("7"), say("seven")), say("7", "1", "unclear"))
    monkeypatch.setattr(module, "load_panel", lambda *_: (others, 64))
    summary = main(AuditConfig(name="r", out=str(finished_run.parent), images=(str(folder),)))
    assert (summary["images"], summary["verified_by"]) == (6, "verifier")
    assert (summary["claimed"]["count"], summary["verified"]["count"]) == (6, 2)
    assert [(t["name"], t["n"], t["failures"]) for t in summary["failure_types"]] == [("how many/number", 6, 2)]
    assert "verified by the verifier" in capsys.readouterr().out


def test_originals_are_asked_the_same_question():
    """The edit, which emptied the scene, made the target wrong about the weather; of the original it was right."""

    def reads(images, questions):
        shown = zip(read_scenes(images), questions, strict=True)
        return [judge(question, reading.scene).answer for reading, question in shown]

    def fooled(images, questions):
        empty = [not any(reading.scene.cells) for reading in read_scenes(images)]
        return ["foggy" if gone else said for gone, said in zip(empty, reads(images, questions), strict=True)]

    def empties(images, key):
        asked = [Asked("", WEATHER, channel="edit", written="remove the star", old=True)] * len(images)
        scenes = [reading.scene._replace(cells=(None,) * 16) for reading in read_scenes(images)]
        return Asking(asked, np.stack([render(scene) for scene in scenes]))

    found = audit(Panel(empties, None, fooled, (reads, reads), reads), open_unseen((), (), 64, 4, seed=0), 4, 0, 1.0, 0)
    assert all(row.flipped for row in found.rows)
    assert set(found.originals) == set(found.pngs) == {row.image_id for row in found.rows}
    assert all(row.verified for row in found.rows)  # the oracle reads the new image: its weather is still the same
