"""scenes/zoo.py: what a member is taught, batch by batch, and that a resumed training goes on exactly."""

from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_zoo import SMALL

from auditdm_jax.errors import UserError
from auditdm_jax.scenes import zoo
from auditdm_jax.scenes.captions import parse_caption
from auditdm_jax.scenes.dataset import question_stream
from auditdm_jax.scenes.edits import parse as parse_command
from auditdm_jax.scenes.language import UNCLEAR, parse
from auditdm_jax.scenes.members import MEMBERS, Member, new_model
from auditdm_jax.scenes.world import Scene, Thing, caption
from auditdm_jax.scenes.zoo import auditor_lesson, batches, doubting

LESSONS = dict(steps=8, unanswerable=0.2, images=2, questions=4, description=0.2)
ANSWERS = Member("a", "paligemma", seed=1, **SMALL | LESSONS)
ASKS = replace(ANSWERS, family="gemma3", distribution="natural", asks=True, steps=12)


@pytest.mark.parametrize("member", [ANSWERS, ASKS])
@pytest.mark.parametrize("start", [1, 4, 5, 7])
def test_batches_resume_exactly(member, start):
    vlm = new_model(member)
    whole = list(islice(batches(vlm, member, 0), 9))
    resumed = list(islice(batches(vlm, member, start), 9 - start))
    for expected, found in zip(whole[start:], resumed, strict=True):
        assert jax.tree.structure(expected) == jax.tree.structure(found)
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_auditor_answers_and_writes_in_turn_and_then_only_writes():
    """What is learned of each batch is one of its texts: nothing of the prompt, and of the kind that is due."""
    vlm = new_model(ASKS)
    kinds = []
    for batch in islice(batches(vlm, ASKS, 0), 12):
        learned = np.asarray(batch.ids).reshape(-1, batch.ids.shape[-1])[0]
        text = vlm.tokenizer.decode(
            learned[np.asarray(batch.answer_mask).reshape(-1, len(learned))[0]], skip_special_tokens=True
        )
        readers = {"question": parse, "command": parse_command, "caption": parse_caption}
        kinds.append(next((kind for kind, read in readers.items() if read(text) is not None), "answer"))
    assert kinds == [auditor_lesson(ASKS, number) for number in range(12)]
    assert kinds == [
        "answer", "question", "command", "answer", "question", "caption", "answer",
        "caption", "question", "command", "question", "caption",
    ]  # fmt: skip


def test_doubts_come_behind_the_other_lessons_and_say_unclear():
    """They go on with scenes not seen before; what has no answer, and no other, is to be doubted."""
    member = replace(ANSWERS, doubts=40, images=4, description=0.0)
    vlm = new_model(member)
    first = next(doubting(vlm, member, 3))
    asked = next(islice(question_stream(member.seed, member.steps + 3, 4, 4, "uniform", 0.5, 0.0, range(99)), 1))[1]
    unclear = vlm.tokenizer(UNCLEAR)["input_ids"][-1]
    said = np.where(first.answer_mask, first.ids, -1).reshape(16, -1)
    doubted = (said == unclear).any(1)
    np.testing.assert_array_equal(doubted, [q.answer == UNCLEAR for row in asked for q in row])
    assert doubted.any()
    assert not doubted.all()


def test_no_two_members_share_a_seed():
    assert len({member.seed for member in MEMBERS.values()}) == len(MEMBERS)


def test_how_well_the_auditor_writes_is_counted(monkeypatch):
    """Of four questions one has an answer, one has none and two are none; of the commands two can be carried out and
    one cannot; three captions are one."""
    scene = Scene("night", (Thing("shape", "red", "star", "small", "solid"), *(None,) * 15))
    texts = {
        zoo.QUESTION_INSTRUCTION: ["what color is the star?", "what color is the ring?", "what star?", ""],
        zoo.COMMAND_INSTRUCTION: ["make the red star blue", "hide the star", "hide the face", "paint"],
        zoo.CAPTION_INSTRUCTION: ["a star red at 2 1", "night weather", caption(scene), "a cat"],
    }
    monkeypatch.setattr(zoo, "ask_many", lambda vlm, images, *, instruction, **_: [[t] for t in texts[instruction]])
    monkeypatch.setattr(zoo.dataset, "scenes_of", lambda *_: ([scene] * 4, None))
    assert zoo.writing_quality(None, 4) == {
        "n": 4, "parsed": 0.5, "answered": 0.25, "unanswerable": 0.25, "unparsable": 0.5, "commands parsed": 0.75,
        "commands that can be done": 0.5, "captions parsed": 0.75,
    }  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_card_tells_of_doubts_even_if_there_were_none(share):
    """But not of those of a member that has learned none."""
    measured = {"n": 4, "overall": 0.5, "ci_low": 0.2, "ci_high": 0.8, "per_skill": {"color": 0.5}}
    vlm = SimpleNamespace(params={})
    assert f"Says unclear to {share:.3f} of" in zoo.card(ANSWERS, measured | {"abstention": share}, vlm)
    assert "Says unclear" not in zoo.card(ANSWERS, measured, vlm)


def test_a_member_starts_from_the_shipped_one_unless_its_own_was_built(tmp_path, monkeypatch):
    """As the card's command asks of a new directory. A path that is not there would be taken for a hub's name."""
    loaded = []
    monkeypatch.setattr(zoo, "ZOO", tmp_path / "shipped")
    monkeypatch.setattr(zoo, "learn", lambda *_: pytest.fail("it was trained"))

    class Loading(Exception):
        pass

    def load(path, *_):
        loaded.append(path)
        raise Loading

    monkeypatch.setattr(zoo.VLM, "load", load)
    out, member = tmp_path / "zoo", replace(ASKS, base="a-base")
    with pytest.raises(UserError, match=r"^a starts from a-base: build that first \(--members a-base\)$"):
        zoo.train_member(member, out, tmp_path)
    for folder in (tmp_path / "shipped", out):
        (folder / "a-base").mkdir(parents=True)
        with pytest.raises(Loading):
            zoo.train_member(member, out, tmp_path)
    assert loaded == [tmp_path / "shipped" / "a-base", out / "a-base"]


def test_how_often_a_member_doubts_is_of_what_has_no_answer(monkeypatch):
    """It says "unclear" to whatever begins with "what": the card has the share of that among hopeless questions."""
    monkeypatch.setattr(zoo, "Answerer", lambda vlm: lambda images, asked: [said(question) for question in asked])
    said = lambda question: UNCLEAR if question.startswith("what") else "red"  # noqa: E731
    result = zoo.examine(None, ANSWERS, 400)
    hopeless = [q.text for q in zoo.dataset.balanced_set(100, unanswerable=True).questions]
    truths = [q.answer == said(q.text) for q in zoo.dataset.balanced_set(400).questions]
    assert result["abstention"] == np.mean([text.startswith("what") for text in hopeless])
    assert result["overall"] == np.mean(truths) > 0
    assert "abstention" not in zoo.examine(None, replace(ANSWERS, unanswerable=0.0), 40)
