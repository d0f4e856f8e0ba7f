from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny_zoo import tiny

from auditdm_jax import discoveries, rectify
from auditdm_jax.config import Models, RectifyConfig, TrainConfig
from auditdm_jax.errors import UserError
from auditdm_jax.evals import Answerer
from auditdm_jax.files import read_json, write_json
from auditdm_jax.models.vlm import VLM
from auditdm_jax.outcomes import Answers, Asked, examine
from auditdm_jax.pool import Pool, pool_of, unseen_first
from auditdm_jax.prompts import template_for
from auditdm_jax.rectify import Encoder, Ensemble, Lesson
from auditdm_jax.runs import audited_images, audited_models
from auditdm_jax.scenes.dataset import scenes_of
from auditdm_jax.scenes.zoo_paths import load_model

IMAGES = np.zeros((4, 64, 64, 3), np.uint8)
CONFIG = RectifyConfig(images_per_step=2, questions_per_image=4, pool=4)


def fixed(*answers: str):
    """An ensemble whose references always give these answers."""
    ensemble = Ensemble([], agreement=1.0)
    ensemble.answerers = [lambda images, questions, *_, said=said: [said] * len(questions) for said in answers]
    return ensemble


def test_lessons_are_what_all_references_say():
    questions = [["q?"], [], ["r?", "s?"], ["t?"]]
    lessons = fixed("Red.", "red").teach(IMAGES, questions)
    assert lessons == [[Lesson("q?", "Red.")], [], [Lesson("r?", "Red."), Lesson("s?", "Red.")], [Lesson("t?", "Red.")]]


@pytest.mark.parametrize("answers", [("red", "blue"), ("unclear", "unclear"), ("", "")])
def test_nothing_is_taught_without_a_consensus(answers):
    assert fixed(*answers).teach(IMAGES, [["q?"]] * 4) == [[]] * 4


def test_each_batch_has_equal_parts_of_each_kind_and_skips_images_without():
    vlm = tiny("x", "paligemma", seed=0)
    kinds = [[[Lesson("is there any ring?", "no")]] * 4, [[Lesson("where is the star?", "red")]] * 3 + [[]]]
    encode = Encoder(vlm, template_for(vlm), 6, 1)
    batch = next(rectify.batches(np.arange(4, dtype=np.uint8)[:, None, None, None] + IMAGES, kinds, encode, CONFIG))
    said = vlm.tokenizer.batch_decode(np.asarray(batch.ids)[:, 0, :1])
    assert said == ["no", "no", "red", "red"] * 2
    assert 3 not in np.asarray(batch.images)


def test_too_few_agreed_questions_is_one_line():
    vlm = tiny("x", "paligemma", seed=0)
    lessons = [[Lesson("q?", "no")], [], [], []]
    with pytest.raises(UserError, match="only 1 images"):
        next(rectify.batches(IMAGES, [lessons], Encoder(vlm, template_for(vlm), 6, 1), CONFIG))


def test_discovered_questions_are_asked_of_every_image():
    found = [Lesson("a?", "red"), Lesson("b?", "blue"), Lesson("c?", "2")]
    asked = rectify.again(found, images=50, per_image=3, seed=1)
    assert {len(row) for row in asked} == {3}
    assert {question for row in asked for question in row} == {"a?", "b?", "c?"}
    assert asked == rectify.again(found, images=50, per_image=3, seed=1)


def test_questions_are_asked_again_and_lessons_drawn_by_the_square_root_of_the_answers_counts():
    found = [Lesson("a?", "red"), Lesson("a?", "Red."), Lesson("a?", "red"), Lesson("b?", "blue")]
    np.testing.assert_allclose(rectify.rarity(found), np.array([3**-0.5] * 3 + [1.0]) / (3**0.5 + 1))
    (row,) = rectify.again(found, images=1, per_image=2000, seed=0)
    assert row.count("b?") / 2000 == pytest.approx(0.366, abs=0.04)
    # Of the first image's two lessons the rare answer's is the likelier by the root of three; others have no choice.
    chances = rectify.chances_of([[found[0], found[3]], [], [found[1]], [found[2]]])
    common, rare = 3**-0.5 / (3**-0.5 + 1), 1 / (3**-0.5 + 1)
    assert [chance.tolist() for chance in chances] == [pytest.approx([common, rare]), [], [1.0], [1.0]]


def test_batches_follow_these_chances():
    vlm = tiny("x", "paligemma", seed=0)
    lessons = [[Lesson("q?", "no"), Lesson("q?", "red")]] + [[Lesson("q?", "no")]] * 8
    encode = Encoder(vlm, template_for(vlm), 6, 1)
    config = replace(CONFIG, images_per_step=9, questions_per_image=400, pool=9)
    batch = next(rectify.batches(np.zeros((9, 64, 64, 3), np.uint8), [lessons], encode, config))
    said = vlm.tokenizer.batch_decode(np.asarray(batch.ids)[:, 0, :1])
    assert said.count("red") / 400 == pytest.approx(0.75, abs=0.05)


@pytest.mark.slow
def test_whole_repair_on_tiny_models(zoo, tmp_path, monkeypatch, capsys):
    # A random auditor would end hardly any question, and what has no end is not taught.
    models = Models("auditor", zoo["target"], (zoo["a"],))
    run = tmp_path / "runs" / "default"
    write_json(run / "config.json", TrainConfig(models=models))
    load_model("auditor").save(run / "auditor")
    scenes, images = scenes_of("validation", 0, 2)
    rows = [
        examine(Asked(str(i), "what color is the star?"), Answers("red", ("blue",), "blue"), 1.0, scene)
        for i, scene in enumerate(scenes)
    ]
    discoveries.write(run / "audit" / "discoveries.parquet", rows, [discoveries.png(image) for image in images], 0)
    # Random references say nothing sensible: let every answer count.
    monkeypatch.setattr(rectify, "consensus_of", lambda answers, agreement: answers[0] or "red")
    config = RectifyConfig(
        out=str(tmp_path / "runs"), steps=2, pool=4, images_per_step=2, questions_per_image=2, test_questions=20
    )
    summary = rectify.rectify(config)
    assert read_json(run / "rectify" / "summary.json") == summary
    assert {"overall", "per_skill"} <= summary["before"].keys() & summary["after"].keys() & summary["control"].keys()
    assert len(summary["after"]["per_skill"]) == 20
    before, after = VLM.load(zoo["target"]), VLM.load(run / "rectify" / "target")
    assert np.abs(np.asarray(before.params["text"]["embedding"] - after.params["text"]["embedding"])).max() > 0
    assert "overall" in capsys.readouterr().out


def test_an_examination_asks_each_question_of_an_image_once():
    lesson, other = rectify.Lesson("q?", "red"), rectify.Lesson("r?", "blue")
    test = rectify.exam(False, IMAGES[:2], [[lesson, other, lesson], [lesson]], CONFIG)
    assert (test.questions, test.shown.tolist()) == (("q?", "r?", "q?"), [0, 0, 1])


def test_an_examination_needs_questions():
    with pytest.raises(UserError, match="agree on no question about the 2 images"):
        rectify.exam(False, IMAGES[:2], [[], []], CONFIG)


def test_no_image_of_the_pool_stands_twice_though_some_cannot_be_read(tmp_path):
    """Else one that is kept for the examination could be taught."""
    for number in range(6):
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
    for number in range(3):
        (tmp_path / f"broken{number}.png").write_bytes(b"not an image")
    for pool, count in ((4, 4), (8, 6)):
        found = pool_of((str(tmp_path),), "all", 8, replace(CONFIG, pool=pool, images_per_step=2))
        assert len(found.images) == len({image.tobytes() for image in found.images}) == count
        assert len(found.ids) == len({*found.ids}) == count
    assert sum(found.skipped.values()) == 3  # of the pool that needs every image


def test_no_discovery_is_of_an_image_that_is_examined():
    images = np.arange(5 * 12, dtype=np.uint8).reshape(5, 2, 2, 3)
    found = discoveries.Discoveries(
        np.stack([images[2], 99 + images[0]]),
        [discoveries.Discovery("q?", "red", name) for name in ("elsewhere", "a")],
        {},
        [images[4]],
    )
    # a is named, c looks the same, a new image was made from e.
    pool, unseen = unseen_first(Pool(images, ["a", "b", "c", "d", "e"], {}), found)
    assert (pool.ids, unseen) == (["b", "d", "a", "c", "e"], 2)
    np.testing.assert_array_equal(pool.images, images[[1, 3, 0, 2, 4]])


def test_the_repaired_model_is_the_audited_one(tmp_path):
    trained = Models(target="target-s")
    assert audited_models(tmp_path, trained, CONFIG) == trained
    write_json(tmp_path / "audit" / "summary.json", {"models": Models(target="target-l")})
    assert audited_models(tmp_path, trained, CONFIG).target == "target-l"
    assert audited_models(tmp_path, trained, replace(CONFIG, discoveries="other.parquet")) == trained
    assert audited_models(tmp_path, trained, replace(CONFIG, target="verifier")).target == "verifier"


def test_a_repair_is_about_what_was_audited(tmp_path):
    assert audited_images(tmp_path) == ()
    for source, images in ((["photos", "more"], ("photos", "more")), ("scenes of the validation split", ())):
        write_json(tmp_path / "audit" / "summary.json", {"image_source": source})
        assert audited_images(tmp_path) == images


def test_questions_and_answers_are_read_at_the_length_of_the_run():
    vlm = tiny("x", "paligemma", seed=0)
    answerer = Answerer.of_run(vlm, vlm, TrainConfig(max_question_tokens=48, max_answer_tokens=8))
    assert (answerer.max_question, answerer.max_new) == (48, 8)
    foreign = tiny("y", "gemma3", seed=1)
    foreign.processor.tokenizer = foreign.tokenizer.train_new_from_iterator(["another vocabulary"], 80)
    assert Answerer.of_run(vlm, foreign, TrainConfig(max_question_tokens=48)).max_question == 96
