"""players.py: who reads the auditor's tokens, and what becomes of a question where the vocabularies differ."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_zoo import tiny

from auditdm_jax.players import Players, retokenizer, share_tokens
from auditdm_jax.prompts import padded, texts_of

TEXTS = ["what color is the star?", "how many stars are there?"]


@pytest.fixture(scope="module")
def players():
    """The reference has a vocabulary of its own; the target the auditor's."""
    auditor, target, other = tiny("m", "gemma3", 0), tiny("t", "paligemma", 1), tiny("r", "gemma3", 2)
    other.processor.tokenizer = other.tokenizer.train_new_from_iterator(TEXTS, 80)
    return Players(auditor, target, (other,))


def test_models_share_tokens_if_they_read_the_auditors_ids_as_it_writes_them(players):
    assert share_tokens(players._replace(references=(players.target,)))
    assert not share_tokens(players)
    assert not share_tokens(players._replace(target=players.references[0], references=()))


def test_a_smaller_vocabulary_does_not_have_all_ids(players):
    """Though its tokenizer is the same: ids that the model has no row for would be read as others."""
    auditor = players.auditor
    few = SimpleNamespace(text=SimpleNamespace(vocab_size=max(auditor.tokenizer.get_vocab().values())))
    smaller = SimpleNamespace(config=few, tokenizer=auditor.tokenizer)
    assert not share_tokens(players._replace(references=(smaller,)))


@pytest.mark.parametrize(("writer", "number"), [(None, 0), (None, 1), (0, 1), (1, 0), (1, 1)])
def test_the_same_words_in_another_models_tokens(players, writer, number):
    """writer, number: None is the auditor, 0 the target, 1 the reference; [2, 1, T] texts become [2, 1, 2 T]."""
    models = (players.target, *players.references)
    wrote = players.auditor if writer is None else models[writer]
    ids, mask = padded(wrote.tokenizer(TEXTS, add_special_tokens=False)["input_ids"], 24, 0)
    moved, words = retokenizer(players)((jnp.asarray(ids)[:, None], jnp.asarray(mask)[:, None]), number, writer)
    assert moved.shape == words.shape == (2, 1, 48)
    reader = models[number].tokenizer
    assert [text.strip() for text in texts_of(reader, moved, words)] == TEXTS
    own = [reader(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert [np.asarray(row)[keep].tolist() for row, keep in zip(moved[:, 0], words[:, 0], strict=True)] == own
    theirs = [wrote.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert (own != theirs) == ((writer == 1) != (number == 1))
