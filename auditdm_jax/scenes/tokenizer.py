"""The zoo's tokenizer: one small word-level vocabulary that serves the processors of both families.

White space, line ends included, separates words and has no token: the families' formats keep their words and
special tokens and become shorter, which is a third of a tiny model's time.
"""

import re

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from auditdm_jax.scenes import language, world

SPECIAL_TOKENS = (
    "<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>",
    "<start_of_image>", "<end_of_image>", "<image_soft_token>",
)  # fmt: skip

# Gemma 3's published format, without its system turn: the image stands before the text of the user's turn.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<start_of_image>{% else %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def vocabulary(extra_text: str = "") -> list[str]:
    """Every word of the world's questions, answers, captions and edits, then letters, digits, their continuations."""
    text = [extra_text, "answer en user model weather in a frame behind bars at unclear yes no describe nothing"]
    text += ["write command that edits caption to about topic", "make turn into change background add remove move swap"]
    text += ["with and put paint replace scene row column next empty cell every it corner by one only"]
    text += list(language.LEADS) + [form for forms in language.FORMS.values() for form in forms]
    text += [*world.COLORS, *world.SIZES, *world.MATERIALS, *world.WEATHERS, *world.QUADRANTS, *language.RELATIONS]
    text += [*language.COMPARISONS, *language.ATTRIBUTES, *world.SPECIALS]
    text += [value for values in world.SPECIALS.values() for value in values]
    text += [language.Ref(noun).words(plural) for noun in language.NOUNS for plural in (False, True)]
    words = sorted(set(re.findall(r"[a-z]+", " ".join(text).lower())))
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + [str(digit) for digit in range(10)]
    numbers = [str(number) for number in range(10, 13)]
    marks = list("?.,:;!'\"()-/")
    words = [word for word in words if len(word) > 1]
    return [*SPECIAL_TOKENS, *words, *numbers, *marks, *letters, *(f"##{letter}" for letter in letters)]


def build_tokenizer(extra_text: str = "", image_token: str = "<image_soft_token>") -> PreTrainedTokenizerFast:
    """Word pieces over `vocabulary`: whole words for the world's language, letters for anything else.

    image_token: the image's placeholder as the family spells it; its id is the same.
    """
    special = [image_token if token == "<image_soft_token>" else token for token in SPECIAL_TOKENS]
    words = vocabulary(extra_text)[len(special) :]
    vocab = {token: index for index, token in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="<unk>", max_input_chars_per_word=32))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        extra_special_tokens={
            "image_token": image_token,
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
        model_max_length=512,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
