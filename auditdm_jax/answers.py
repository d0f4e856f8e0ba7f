"""Answers of models with different tokenizers, compared on the device without strings.

    token ids -> bytes of each token (a table) -> folded bytes -> words -> one uint32 id

Equal ids <=> equal `normalize`d text, whatever the tokenizers (two texts share an id by chance once in 4e9).
Text is taken as UTF-8. Only ASCII is folded: other letters keep their case, other punctuation stays part of its
word. Tokens cut off in the middle of a character are compared by their bytes, which equal no valid text's.
"""

import re
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt8, UInt32

from auditdm_jax.errors import UserError

ARTICLES = ("a", "an", "the")
NUMBER_WORDS = (
    *(
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
    ),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_ASCII_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
_MARKS = re.compile(
    r"(?P<kept>(?<=[0-9])\.(?=[0-9]))|(?P<dropped>(?<=[0-9]),(?=[0-9])|')|(?P<space>[\x00-/:-@\[-`{-\x7f])"
)
_SPACE, _DROPPED = 32, 0  # folded bytes that are not part of a word: one ends it, the other does not


def normalize(text: str) -> str:
    """Text in the form in which answers are compared, after the scoring of VQA (Antol et al. 2015).

    Lower case; "1,000" -> "1000" and "3.5" kept, otherwise punctuation separates words; apostrophes go; number
    words up to twenty become digits; articles go, unless nothing else is left ("A" may be a letter on a sign).
    `normalize("The man's two  dogs.")` is `"mans 2 dogs"`.
    """
    folded = _MARKS.sub(
        lambda match: {"kept": match[0], "dropped": "", "space": " "}[match.lastgroup or ""],
        text.translate(_ASCII_LOWER),
    )
    words = [word for word in folded.split(" ") if word]
    words = [word for word in words if word not in ARTICLES] or words
    return " ".join(str(NUMBER_WORDS.index(word)) if word in NUMBER_WORDS else word for word in words)


@flax.struct.dataclass
class TokenBytes:
    """What each token v of a vocabulary adds to a text: the first `lengths[v]` bytes of `table[v]`; zeros after."""

    table: UInt8[Array, "V M"]
    lengths: Int[Array, "V"]


def token_bytes(tokenizer: Any) -> TokenBytes:
    """The table of a Hugging Face tokenizer: SentencePiece-style, byte-level BPE, WordPiece, or plain words.

    Special tokens, and ids above the vocabulary, have no bytes. M is the length of the longest token. A text may
    start with a space that the tokenizer would not decode; it has no meaning in an answer. Takes a second for
    260,000 tokens. Raises UserError where it is not known how the tokenizer joins its tokens.
    """
    spell = _speller(tokenizer)
    vocabulary = tokenizer.get_vocab()
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    spelled = [b""] * (max(vocabulary.values()) + 1)
    for token, index in vocabulary.items():
        if index not in special and index not in tokenizer.all_special_ids:
            spelled[index] = spell(token)
    lengths = np.array([len(piece) for piece in spelled], np.int32)
    table = np.zeros((len(spelled), max(1, int(lengths.max()))), np.uint8)
    table[np.arange(table.shape[1]) < lengths[:, None]] = np.frombuffer(b"".join(spelled), np.uint8)
    return TokenBytes(jnp.asarray(table), jnp.asarray(lengths))


def _speller(tokenizer: Any) -> Callable[[str], bytes]:
    """The function from a token, as written in the vocabulary, to its bytes in the text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"{type(tokenizer).__name__} is not a fast tokenizer; use a checkpoint with tokenizer.json"
        )
    if backend.decoder is None:  # tokens are words
        return lambda token: f" {token}".encode()
    steps = backend.decoder.__getstate__().decode()  # JSON
    if '"ByteLevel"' in steps:
        byte_of = _byte_level_alphabet()
        # An added token may hold characters outside of the alphabet: it is written as itself.
        return lambda token: (
            bytes(map(byte_of.get, token)) if byte_of.keys() >= set(token) else token.encode()
        )
    if '"WordPiece"' in steps:
        # The decoder knows its prefix and clean-up: behind a first token it shows what a later one adds.
        return lambda token: backend.decoder.decode(["x", token])[1:].encode()
    if "▁" in steps:
        is_byte = re.compile("<0x([0-9A-F]{2})>" if '"ByteFallback"' in steps else "(?!)").fullmatch
        return lambda token: (
            bytes.fromhex(byte[1]) if (byte := is_byte(token)) else token.replace("▁", " ").encode()
        )
    raise UserError(
        f"no rule for a tokenizer with the decoder {steps[:60]}; "
        "use a checkpoint with a SentencePiece-style, byte-level BPE or WordPiece tokenizer"
    )


def _byte_level_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE (Radford et al. 2019): printable Latin-1 stands for itself, the other
    bytes take the characters from U+0100 on, in order ("Ġ" is the space)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def mix32(x: Any) -> Any:
    """Scrambles uint32 arrays, of NumPy or JAX, one to one: the finaliser of MurmurHash3. mix32(0) is 0."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


_PRIME = np.uint32(0x01000193)


def _polynomial(values: np.ndarray) -> int:
    """sum_j mix32(values_j) * _PRIME^(n-1-j) modulo 2^32: of bytes, a word's hash; of such hashes, a text's id."""
    powers = np.power(_PRIME, np.arange(len(values))[::-1], dtype=np.uint32)
    return int(np.sum(mix32(values.astype(np.uint32)) * powers, dtype=np.uint32))


def _word_hash(word: str) -> int:
    return _polynomial(np.frombuffer(word.encode("utf-8", "replace"), np.uint8))


def text_answer_id(text: str) -> int:
    """The id that `answer_ids` gives to tokens of this text; 0 where nothing is left of it."""
    return _polynomial(np.array([_word_hash(word) for word in normalize(text).split(" ") if word], np.uint32))


# Words to be replaced are recognised by their hash. A folded word has no zero byte, so its hash is not 0, short of
# chance: 0 stands for "no word".
_FOLD = np.array([b if b >= 128 or chr(b).isalnum() else _SPACE for b in bytes(range(256)).lower()], np.uint8)
_ARTICLES = np.array([_word_hash(word) for word in ARTICLES], np.uint32)
_NUMBER_WORDS = np.array([_word_hash(word) for word in NUMBER_WORDS], np.uint32)
_NUMBERS = np.array([_word_hash(str(number)) for number in range(len(NUMBER_WORDS))], np.uint32)


def answer_ids(
    token_bytes: TokenBytes, ids: Int[Array, "*batch T"], mask: Bool[Array, "*batch T"]
) -> tuple[UInt32[Array, "*batch"], Bool[Array, "*batch"]]:
    """Canonical ids of answers, and where an answer is empty after normalisation (its id is 0 then).

    Tokens off the mask add nothing. Costs O(T * M) a row, in O(log(T * M)) steps; jit-able.
    """
    flat_ids, flat_mask = ids.reshape(-1, ids.shape[-1]), mask.reshape(-1, ids.shape[-1])
    found, empty = jax.vmap(_answer_id, (None, 0, 0))(token_bytes, flat_ids, flat_mask)
    return found.reshape(ids.shape[:-1]), empty.reshape(ids.shape[:-1])


def _answer_id(
    token_bytes: TokenBytes, ids: Int[Array, "T"], mask: Bool[Array, "T"]
) -> tuple[UInt32[Array, ""], Bool[Array, ""]]:
    folded = _fold(_text(token_bytes, ids, mask))
    is_space, in_word = folded == _SPACE, (folded != _SPACE) & (folded != _DROPPED)
    letters = jnp.where(in_word, mix32(folded.astype(jnp.uint32)), 0)
    running = _horner(jnp.where(is_space, 0, jnp.where(in_word, _PRIME, 1)), letters)
    # The space after a word sees the whole word one place before it.
    words = jnp.where(is_space, jnp.roll(running, 1), 0)

    is_article = (words[:, None] == _ARTICLES).any(-1)
    nothing_else = ~((words != 0) & ~is_article).any()
    words = jnp.where(is_article & ~nothing_else, 0, words)
    is_number = words[:, None] == _NUMBER_WORDS
    words = jnp.where(is_number.any(-1), jnp.where(is_number, _NUMBERS, 0).sum(-1, dtype=jnp.uint32), words)

    is_word = words != 0
    answer = _horner(jnp.where(is_word, _PRIME, 1), mix32(words))[-1]
    return answer, ~is_word.any()


def _text(token_bytes: TokenBytes, ids: Int[Array, "T"], mask: Bool[Array, "T"]) -> UInt8[Array, "N"]:
    """The tokens' bytes in a row, then spaces; N = T * M + 2, so that a space stands at both ends."""
    # Ids beyond the tokenizer's (padded embeddings) have no bytes either.
    lengths = jnp.where(mask, token_bytes.lengths.at[ids].get(mode="fill", fill_value=0), 0)
    ends = jnp.cumsum(lengths)
    place = jnp.arange(-1, ids.shape[-1] * token_bytes.table.shape[-1] + 1)
    token = jnp.minimum((place[:, None] >= ends).sum(-1), ids.shape[-1] - 1)
    offset = place - (ends - lengths)[token]
    found = token_bytes.table.at[ids[token], offset].get(mode="clip")
    return jnp.where((place >= 0) & (place < ends[-1]), found, _SPACE).astype(jnp.uint8)


def _fold(text: UInt8[Array, "N"]) -> UInt8[Array, "N"]:
    """Lower case, and what becomes of punctuation: itself, _SPACE or _DROPPED."""
    is_digit = (text >= ord("0")) & (text <= ord("9"))
    # Both ends are spaces, so wrapping round shows no digit.
    between_digits = jnp.roll(is_digit, 1) & jnp.roll(is_digit, -1)
    folded = jnp.asarray(_FOLD)[text]
    folded = jnp.where(between_digits & (text == ord(".")), text, folded)
    dropped = (between_digits & (text == ord(","))) | (text == ord("'"))
    return jnp.where(dropped, jnp.uint8(_DROPPED), folded)


def _horner(factors: Array, terms: Array) -> UInt32[Array, "N"]:
    """h_j = h_{j-1} * factors_j + terms_j from h_{-1} = 0, modulo 2^32, by composing affine maps."""

    def compose(left, right):
        return left[0] * right[0], left[1] * right[0] + right[1]

    return jax.lax.associative_scan(compose, (factors.astype(jnp.uint32), terms.astype(jnp.uint32)))[1]
