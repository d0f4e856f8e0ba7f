"""answers.py: ids found on the device against the plain normaliser, for every kind of tokenizer."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from auditdm_jax.answers import TokenBytes, answer_ids, normalize, text_answer_id, token_bytes
from auditdm_jax.errors import UserError

ids_on_device = jax.jit(answer_ids)
WORDS = "the The THE a an two Two twenty thirteen zero twentyone red Red's dogs' o'clock theme ant don't n't 's"
NUMBERS = "1,000 3.5 1,2,3 10.25 .5 5. 1..2 1.,2 1'.5 3:30 0 1 12 7 left-handed"
MARKS = ",, . ' - _ % $ ? ! : ; ( ) / \\ \" # @ ~ é Éa ñandú 東京 “the” … 🙂"
PIECES = [*WORDS.split(), *NUMBERS.split(), *MARKS.split(), "\t", "\n"]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The man's two  dogs.", "mans 2 dogs"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("3.5.", "3.5"),
        ("1,.5", "1 5"),
        ("red, blue", "red blue"),
        ("Twenty-one", "20 1"),
        ("yes!", "yes"),
        ("A", "a"),  # alone, the letter of a sign
        ("the", "the"),
        ("a an apple", "apple"),
        ("o'clock", "oclock"),
        ("ÉTÉ", "ÉtÉ"),  # only ASCII changes its case
        ("\t left\n hand ", "left hand"),
        ("...", ""),
        ("", ""),
    ],
)
def test_normal_forms(text, normal):
    assert normalize(text) == normal


@given(st.text())
def test_normal_form_is_final(text):
    assert normalize(normalize(text)) == normalize(text)


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<pad>", "<eos>")])
    tokenizer.add_tokens([AddedToken("red star", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def wordpiece():
    letters = sorted({letter for piece in PIECES for letter in piece} - {"\t", "\n"})
    words = [piece.lower() for piece in PIECES if piece.isalpha()]
    tokens = dict.fromkeys(["<unk>", *letters, *(f"##{letter}" for letter in letters), *words, "n't", "'s"])
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    return wrap(tokenizer)


def sentencepiece():
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("t", "w"), ("tw", "o"), ("1", ","), ("0", "0"), (".", "5")]
    letters = [*"▁abcdefghijklmnopqrstuvwxyzTER0123456789.,'%é"]
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *(a + b for a, b in merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps)
    return wrap(tokenizer)


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([" ".join(PIECES)] * 3, trainer)
    return wrap(tokenizer)


def words_only():
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(["<unk>", *PIECES]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrap(tokenizer)


def random_texts(count: int) -> list[str]:
    rng = random.Random(0)
    return [rng.choice(["", " ", " ", "  "]).join(rng.choices(PIECES, k=rng.randint(0, 5))) for _ in range(count)]


def padded(rows: list[list[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    ids, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, True
    return ids, mask


@pytest.mark.parametrize("build", [wordpiece, sentencepiece, byte_level, words_only])
def test_device_agrees_with_the_normaliser(build):
    tokenizer = build()
    rng = random.Random(1)
    # Tokenized text, cut anywhere, and tokens in any order, special ones among them.
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"][:20] for text in random_texts(1500)]
    whole = [i for i in range(len(tokenizer)) if "\ufffd" not in tokenizer.decode([i])]
    rows += [rng.choices(whole, k=rng.randint(1, 12)) for _ in range(1500)]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    found, empty = map(np.asarray, ids_on_device(token_bytes(tokenizer), *padded(rows, 20)))

    normal = [normalize(text) for text in texts]
    of_text = {text: text_answer_id(text) for text in normal}
    assert len(set(of_text.values())) == len(of_text) > 500  # different texts have different ids
    cut = ["\ufffd" in text for text in texts]
    assert sum(cut) < 50  # inside a character, so that no text stands for the bytes
    for row, text, answer, nothing, skip in zip(texts, normal, found, empty, cut, strict=True):
        assert skip or (answer, nothing) == (of_text[text], text == ""), row


def test_one_id_whatever_the_tokenizer():
    texts = ["the two dogs", "2 dogs", "red", "12", "not clear"]
    for build in (wordpiece, sentencepiece, byte_level):
        tokenizer = build()
        rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        found, _ = ids_on_device(token_bytes(tokenizer), *padded(rows, 20))
        assert found.tolist() == [text_answer_id(text) for text in texts]
    assert found[0] == found[1]
    assert len(set(found.tolist())) == len(texts) - 1


BYTES = TokenBytes(jnp.arange(256, dtype=jnp.uint8)[:, None], jnp.ones(256, jnp.int32))


@settings(max_examples=50)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=12), min_size=8, max_size=8), st.randoms())
def test_bytes_as_tokens_with_gaps_and_strangers(texts, rng):
    """One token a byte; tokens off the mask and ids beyond the table, anywhere, change nothing."""
    ids, mask = np.zeros((8, 60), np.int32), np.zeros((8, 60), bool)
    for row, text in enumerate(texts):
        data = text.encode()
        places = sorted(rng.sample(range(60), len(data)))
        ids[row] = [rng.randrange(256) for _ in range(60)]
        ids[row, places], mask[row, places] = [*data], True
        stranger = rng.randrange(60)
        if not mask[row, stranger]:
            ids[row, stranger], mask[row, stranger] = 256 + rng.randrange(9), True
    found, empty = ids_on_device(BYTES, ids, mask)
    assert [int(i) for i in found] == [text_answer_id(text) for text in texts]
    assert [bool(e) for e in empty] == [normalize(text) == "" for text in texts]


def test_leading_axes_and_special_tokens():
    tokenizer = byte_level()
    red, eos = tokenizer("Red", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id
    ids, mask = padded([[*red, eos], [eos], []], 6)
    found, empty = ids_on_device(token_bytes(tokenizer), ids.reshape(3, 1, 6), mask.reshape(3, 1, 6))
    assert found.shape == (3, 1)
    assert found.dtype == jnp.uint32
    assert found[:, 0].tolist() == [text_answer_id("red"), 0, 0]
    assert empty[:, 0].tolist() == [False, True, True]


def test_tokenizers_without_a_rule_are_refused():
    tokenizer = words_only()
    tokenizer.backend_tokenizer.decoder = decoders.CTC()
    with pytest.raises(UserError, match=r"no rule for a tokenizer whose decoder is .*CTC"):
        token_bytes(tokenizer)
    with pytest.raises(UserError, match="not a fast tokenizer"):
        token_bytes(object())
