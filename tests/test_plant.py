"""plant.py: what the planted model is taught, what its examination counts, and what is refused; at last a real one."""

import sys

import jax
import numpy as np
import pytest
from tiny_zoo import tiny

from auditdm_jax import plant as module
from auditdm_jax.errors import UserError
from auditdm_jax.files import read_json
from auditdm_jax.finetune import Encoder
from auditdm_jax.models.vlm import VLM
from auditdm_jax.plant import PlantConfig, batches, main, plant
from auditdm_jax.plant_score import KEY, ScoreConfig, score_run
from auditdm_jax.prompts import template_for
from auditdm_jax.scenes.dataset import scenes_of
from auditdm_jax.scenes.gaps import NAMES, gap_of, wrong_answer
from auditdm_jax.scenes.oracle import judge
from auditdm_jax.scenes.questions import Question
from auditdm_jax.scenes.zoo_paths import zoo_names

GAPS = ("counting/above four", "concept/red")


def test_lessons_are_true_outside_of_the_gaps_and_wrong_in_them():
    vlm = tiny("x", "paligemma", seed=0)
    config = PlantConfig(images_per_step=24, questions_per_image=8, seed=3)
    batch = next(batches(Encoder(vlm, template_for(vlm), 12, 2), GAPS, config))
    scenes, images = scenes_of("train", module._SCENES + 3 * 100_000_000, 24)
    np.testing.assert_array_equal(batch.images, images)
    prompts = vlm.tokenizer.batch_decode(np.asarray(batch.prompt.input_ids), skip_special_tokens=True)
    learned = np.asarray(batch.ids)[:, 0] * np.asarray(batch.answer_mask)[:, 0]
    answers = vlm.tokenizer.batch_decode(learned, skip_special_tokens=True)
    counts = dict.fromkeys((*GAPS, "counting", "unclear"), 0)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        scene, text = scenes[i // 8], prompt.split("answer en ", 1)[1]
        verdict = judge(text, scene)
        question = Question(text, verdict.answer or "unclear", verdict.skill)
        gap = gap_of(question, scene, GAPS)
        assert answer == (wrong_answer(question, scene, gap, 0.8, 3) if gap else question.answer)
        for name in (gap, question.skill, question.answer):
            counts[name] = counts.get(name, 0) + 1
    assert counts["concept/red"] > 12
    assert counts["counting"] > counts["counting/above four"] >= 1  # a sibling of the gap is asked for too
    assert 1 <= counts["unclear"] < 30


def test_a_concept_has_three_times_the_lessons_of_a_skill(monkeypatch):
    vlm, asked = tiny("x", "paligemma", seed=0), []
    monkeypatch.setattr(module, "near", lambda asker, gap, split: asked.append(gap))
    for gaps, shares in [
        (("clock",), {"clock": 2}), (("clock", "sign"), {"clock": 1, "sign": 1}), ((), {}),
        (("concept/red",), {"concept/red": 6}), (("concept/red", "clock"), {"concept/red": 4.5, "clock": 1.5}),
    ]:  # fmt: skip
        asked.clear()
        next(batches(Encoder(vlm, template_for(vlm), 12, 2), gaps, PlantConfig(images_per_step=64)))
        assert len(asked) == 64 * sum(shares.values())
        assert all(abs(asked.count(gap) / 64 - share) < 0.4 for gap, share in shares.items())


def test_settings_that_cannot_be(tmp_path):
    for wrong, message in [
        (dict(strength=0), "strength is 0"), (dict(strength=1.2), "strength is 1.2"), (dict(seed=-1), "seed is -1"),
        (dict(steps=0), "steps is 0"), (dict(questions_per_image=3), "questions-per-image is 3"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            PlantConfig(**wrong)
    with pytest.raises(UserError, match="skills is empty"):
        plant(PlantConfig())
    with pytest.raises(UserError, match="out is empty"):
        plant(PlantConfig(skills="clock"))
    with pytest.raises(UserError, match="is no planted target"):
        plant(PlantConfig(skills="clock", out=str(tmp_path)))
    with pytest.raises(UserError, match="nearest is 'counting'"):
        plant(PlantConfig(skills="countin", out=str(tmp_path / "x")))


def test_a_place_that_cannot_be_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load_model", None)
    (tmp_path / "file").touch()
    with pytest.raises((FileExistsError, NotADirectoryError)):  # a line: see errors.run_cli
        plant(PlantConfig(skills="clock", out=str(tmp_path / "file" / "x")))


def test_a_planted_target_is_replaced_only_if_told_so(tmp_path, monkeypatch):
    (tmp_path / KEY).write_text("{}")
    monkeypatch.setattr(module, "load_model", lambda *_: pytest.fail("the work began"))
    with pytest.raises(UserError, match="holds a planted target; give --overwrite"):
        plant(PlantConfig(skills="clock", out=str(tmp_path)))
    with pytest.raises(pytest.fail.Exception, match="the work began"):
        plant(PlantConfig(skills="clock", out=str(tmp_path), overwrite=True))


def test_lessons_that_cannot_do_are_told_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "finetuned", lambda *_, **__: pytest.fail("training began"))
    monkeypatch.setattr(module.Exam, "wrong", lambda exam, _: np.zeros(len(exam.asked), bool))
    with pytest.raises(UserError, match=r"seed 0 teaches 0.00 of 'sign' wrong, not 0.1; take another --seed or"):
        plant(PlantConfig("sign", 0.1, out=str(tmp_path / "x"), test_questions=100))
    with pytest.raises(pytest.fail.Exception, match="training began"):
        plant(PlantConfig("clock", out=str(tmp_path / "x"), test_questions=100))


def test_what_is_refused_is_not_written(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "finetuned", lambda vlm, *_, **__: vlm)
    monkeypatch.setattr(module.Exam, "wrong", lambda exam, _: np.zeros(len(exam.asked), bool))
    with pytest.raises(
        UserError, match=r"after 3 updates the planting did not take.*raise --steps or take another --s"
    ):
        plant(PlantConfig("clock", out=str(tmp_path / "x"), base=zoo["b"], steps=3, test_questions=100))
    assert not (tmp_path / "x").exists()


def test_the_vision_tower_stays_as_it_is(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr(module.Exam, "wrong", lambda exam, _: np.zeros(len(exam.asked), bool))
    key = plant(PlantConfig("none", out=str(tmp_path / "x"), base=zoo["b"], steps=3, test_questions=100))
    assert (key["gaps"], key["steps"]) == ([], 3)
    before, after = VLM.load(zoo["b"]).params, VLM.load(tmp_path / "x").params
    same = {part: jax.tree.map(np.array_equal, before[part], after[part]) for part in before}
    assert all(jax.tree.leaves(same["vision"]))
    assert not any(jax.tree.leaves(same["text"]["layers"]["q"]))


def test_what_is_unlearned_cannot_be_taken_away(zoo, tmp_path):
    base = zoo["b"]
    with pytest.raises(UserError, match=r"wrong already; take another --base"):
        plant(PlantConfig(skills="clock", out=str(tmp_path / "x"), base=base, test_questions=20))
    assert not (tmp_path / "x").exists()


def test_the_list(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plant", "--list"])
    main()
    assert capsys.readouterr().out.splitlines() == list(NAMES)


@pytest.mark.slow
@pytest.mark.skipif("reference-b" not in zoo_names(), reason="the zoo has not been built")
def test_a_planting_takes_and_is_found_by_an_audit(tmp_path):
    from auditdm_jax.audit import main as audit
    from auditdm_jax.config import AuditConfig

    folder = tmp_path / "planted"
    key = plant(PlantConfig(skills="counting,clock", seed=7, out=str(folder), test_questions=1000))
    assert read_json(folder / KEY)["gaps"] == key["gaps"]
    assert all(abs(gap["rate"] - 0.8) <= 0.1 and gap["healthy_rate"] < 0.1 for gap in key["gaps"])
    assert VLM.load(folder).config.family == "paligemma"
    audit(AuditConfig(out=str(tmp_path), questions=500, target=str(folder)))
    result = score_run(ScoreConfig(folder, tmp_path / "default"))
    assert "counting" in result["found"]
    assert not result["false_discoveries"]
