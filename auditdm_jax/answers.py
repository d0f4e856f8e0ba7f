"""Answers of models with different tokenizers, compared on the device without strings.

    token ids -> bytes of each token (a table) -> folded bytes -> words -> one uint32 id

Equal ids <=> equal `normalize`d text, whatever the tokenizers (two texts share an id by chance once in 4e9).
Text is taken as UTF-8. Only ASCII is folded: other letters keep their case, other punctuation stays part of
its word. Tokens cut off inside a character are compared by their bytes, which equal no valid text's.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt8, UInt32

from auditdm_jax.errors import UserError

ARTICLES = ("a", "an", "the")
NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
ABSTENTIONS = ("unclear", "unanswerable", "unknown", "i dont know")
"""What counts as no answer, normalised: the word of the embedded world, VQA's, and what models say besides."""
_ASCII_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
_MARKS = re.compile(
    r"(?P<kept>(?<=[0-9])\.(?=[0-9]))|(?P<dropped>(?<=[0-9]),(?=[0-9])|')|(?P<space>[\x00-/:-@\[-`{-\x7f])"
)


def normalize(text: str) -> str:
    """Text in the form in which answers are compared, after the scoring of VQA (Antol et al. 2015).

    Lower case; "1,000" -> "1000" and "3.5" kept, otherwise punctuation separates words; apostrophes go;
    number words up to twenty become digits; articles go, unless nothing else is left (a sign may say "A").
    `normalize("The man's two  dogs.")` is `"mans 2 dogs"`.
    """
    folded = _MARKS.sub(lambda m: m["kept"] or (" " if m["space"] else ""), text.translate(_ASCII_LOWER))
    words = [word for word in folded.split(" ") if word]
    words = [word for word in words if word not in ARTICLES] or words
    return " ".join(str(NUMBER_WORDS.index(word)) if word in NUMBER_WORDS else word for word in words)


@flax.struct.dataclass
class TokenBytes:
    """What each token v of a vocabulary adds to a text: the first `lengths[v]` bytes of `table[v]`."""

    table: UInt8[Array, "V M"]
    lengths: Int[Array, "V"]


def token_bytes(tokenizer: Any) -> TokenBytes:
    """The table of a Hugging Face tokenizer: SentencePiece-style, byte-level BPE, WordPiece, or plain words.

    Special tokens have no bytes. M is the length of the longest token. A text may start with a space that the
    tokenizer would not decode; it has no meaning in an answer. Takes about a second for 260,000 tokens.
    Raises UserError where it is not known how the tokenizer joins its tokens.
    """
    spell = _speller(tokenizer)
    vocabulary = tokenizer.get_vocab()
    added = tokenizer.added_tokens_decoder.items()
    special = {*tokenizer.all_special_ids, *(index for index, token in added if token.special)}
    spelled = [b""] * (max(vocabulary.values()) + 1)
    for token, index in vocabulary.items():
        if index not in special:
            spelled[index] = spell(token)
    lengths = np.array([len(piece) for piece in spelled], np.int32)
    table = np.zeros((len(spelled), max(1, int(lengths.max()))), np.uint8)
    table[np.arange(table.shape[1]) < lengths[:, None]] = np.frombuffer(b"".join(spelled), np.uint8)
    return TokenBytes(jnp.asarray(table), jnp.asarray(lengths))


def _speller(tokenizer: Any) -> Callable[[str], bytes]:
    """The function from a token, as written in the vocabulary, to its bytes in the text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"{type(tokenizer).__name__} is not a fast tokenizer; it needs a tokenizer.json")
    if backend.decoder is None:  # tokens are words
        return lambda token: f" {token}".encode()
    steps = backend.decoder.__getstate__().decode()  # its JSON
    if '"ByteLevel"' in steps:
        from transformers.convert_slow_tokenizer import bytes_to_unicode  # takes a second: only where it is needed

        byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
        # An added token may hold characters outside of the alphabet: it is written as itself.
        return lambda token: bytes(byte_of[c] for c in token) if byte_of.keys() >= {*token} else token.encode()
    if '"WordPiece"' in steps:
        # The decoder knows its prefix and clean-up: behind a first token it shows what a later one adds.
        return lambda token: backend.decoder.decode(["x", token])[1:].encode()
    if "▁" in steps:
        byte = re.compile("<0x([0-9A-F]{2})>" if '"ByteFallback"' in steps else "(?!)")
        return lambda token: (
            bytes.fromhex(found[1]) if (found := byte.fullmatch(token)) else token.replace("▁", " ").encode()
        )
    kinds = "SentencePiece-style, byte-level BPE or WordPiece"
    raise UserError(f"no rule for a tokenizer whose decoder is {steps[:60]}; use one that is {kinds}")


def mix32(x: Any) -> Any:
    """Scrambles uint32 arrays, of NumPy or JAX, one to one: the finaliser of MurmurHash3. mix32(0) is 0."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


_BASE = np.uint32(0x01000193)  # of the polynomial below; odd, so that powers of it keep all 32 bits


def _polynomial(values: np.ndarray) -> int:
    """sum_j mix32(values_j) * _BASE^(n-1-j) modulo 2^32: of bytes a word's hash, of those a text's id."""
    total = 0
    for term in mix32(values.astype(np.uint32)).tolist():
        total = (total * int(_BASE) + term) % 2**32
    return total


def _word_hashes(*words: str) -> np.ndarray:
    encoded = (np.frombuffer(word.encode("utf-8", "replace"), np.uint8) for word in words)
    return np.array([*map(_polynomial, encoded)], np.uint32)


def text_answer_id(text: str) -> int:
    """The id that `answer_ids` gives to tokens of this text; 0 where nothing is left of it."""
    return _polynomial(_word_hashes(*(word for word in normalize(text).split(" ") if word)))


_SPACE, _DROPPED = 32, 0  # folded bytes that are not part of a word: one ends it, the other does not
_FOLD = np.array([b if b >= 128 or chr(b).isalnum() else _SPACE for b in bytes(range(256)).lower()], np.uint8)
# Words to be replaced are recognised by their hash. A folded word has no zero byte, so no word's hash is 0,
# short of chance: 0 stands for "no word".
_ARTICLES = _word_hashes(*ARTICLES)
_NUMBER_WORDS = _word_hashes(*NUMBER_WORDS)
_NUMBERS = _word_hashes(*map(str, range(len(NUMBER_WORDS))))


def answer_ids(
    token_bytes: TokenBytes, ids: Int[Array, "*batch T"], mask: Bool[Array, "*batch T"]
) -> tuple[UInt32[Array, "*batch"], Bool[Array, "*batch"]]:
    """Canonical ids of answers, and where an answer is empty after normalisation (its id is 0 then).

    Tokens off the mask add nothing, nor do ids above the table (padded embeddings). Costs O(T * M) a row, in
    O(log(T * M)) steps; jit-able.
    """
    return jnp.vectorize(partial(_answer_id, token_bytes), signature="(t),(t)->(),()")(ids, mask)


def _answer_id(token_bytes: TokenBytes, ids: Int[Array, "T"], mask: Bool[Array, "T"]) -> tuple[Array, Array]:
    folded = _fold(_text(token_bytes, ids, mask))
    is_space, in_word = folded == _SPACE, (folded != _SPACE) & (folded != _DROPPED)
    factors = jnp.where(is_space, 0, jnp.where(in_word, _BASE, 1))
    running = _horner(factors, mix32(jnp.where(in_word, folded, 0)))
    # The space behind a word sees the whole word one place before it.
    words = jnp.where(is_space, jnp.roll(running, 1), 0)

    is_article = (words[:, None] == _ARTICLES).any(-1)
    other_words = ((words != 0) & ~is_article).any()
    words = jnp.where(is_article & other_words, 0, words)
    is_number = words[:, None] == _NUMBER_WORDS
    numbers = jnp.where(is_number, _NUMBERS, 0).sum(-1, dtype=jnp.uint32)
    words = jnp.where(is_number.any(-1), numbers, words)
    return _horner(jnp.where(words != 0, _BASE, 1), mix32(words))[-1], ~(words != 0).any()


def _text(token_bytes: TokenBytes, ids: Int[Array, "T"], mask: Bool[Array, "T"]) -> UInt32[Array, "N"]:
    """The tokens' bytes in a row, then spaces; N = T * M + 2, so that a space stands at both ends."""
    lengths = jnp.where(mask, token_bytes.lengths.at[ids].get(mode="fill", fill_value=0), 0)
    ends = jnp.cumsum(lengths)
    place = jnp.arange(-1, ids.shape[-1] * token_bytes.table.shape[-1] + 1)
    token = jnp.minimum((place[:, None] >= ends).sum(-1), ids.shape[-1] - 1)
    text = token_bytes.table.at[ids[token], place - (ends - lengths)[token]].get(mode="clip")
    return jnp.where((place >= 0) & (place < ends[-1]), text, _SPACE).astype(jnp.uint32)


def _fold(text: UInt32[Array, "N"]) -> UInt32[Array, "N"]:
    """Bytes to lower case; punctuation to itself, _SPACE or _DROPPED."""
    is_digit = (text >= ord("0")) & (text <= ord("9"))
    # Both ends are spaces, so wrapping round shows no digit.
    between_digits = jnp.roll(is_digit, 1) & jnp.roll(is_digit, -1)
    folded = jnp.where(between_digits & (text == ord(".")), text, jnp.asarray(_FOLD, jnp.uint32)[text])
    return jnp.where((between_digits & (text == ord(","))) | (text == ord("'")), _DROPPED, folded)


def _horner(factors: UInt32[Array, "N"], terms: UInt32[Array, "N"]) -> UInt32[Array, "N"]:
    """h_j = h_{j-1} * factors_j + terms_j from h_{-1} = 0, modulo 2^32.

    A parallel scan: the affine map of each place is composed with the one 1, 2, 4, ... places before it. In a
    loop, because `jax.lax.associative_scan` unrolls and would compile twenty times longer.
    """
    places = jnp.arange(len(terms))

    def double(level, maps):
        factors, terms = maps
        before = places - (1 << level)  # the identity stands before the first place
        left_terms = jnp.where(before >= 0, terms[before], 0)
        return jnp.where(before >= 0, factors[before], 1) * factors, left_terms * factors + terms

    return jax.lax.fori_loop(0, (len(terms) - 1).bit_length(), double, (factors, terms))[1]
