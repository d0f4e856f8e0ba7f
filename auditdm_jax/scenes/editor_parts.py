"""The parts of the embedded editor: a stock FluxKontextPipeline so small that its transformer has one token a cell.

The autoencoder shrinks by 8 and Flux packs 2x2 latents into a token: 16 pixels, a cell of the world. Both tokenizers
take a token a word.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from auditdm_jax.scenes.tokenizer import SPECIAL_TOKENS, vocabulary
from auditdm_jax.scenes.world import GRID

# The longest command of the world, an end token and one to spare; the caption of some nine things, and its end.
COMMAND_TOKENS, CAPTION_TOKENS = 16, 64
# Of CLIP, which only sums a text up: a command and its two marks.
_POOLED_TOKENS = 20
# Where the heads of the text encoder look at first, in words from each word's own place, and how much less, in nats,
# each word further off.
_LOOKS_AT, _FALL = (-1, -2, -3, -5, 1, 3), 1.5
_START, _END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class EditorSize:
    """Widths and depths of the editor's parts."""

    latent_channels: int = 16
    vae_channels: tuple[int, int, int, int] = (16, 32, 64, 128)
    text_width: int = 96
    text_layers: int = 2
    heads: int = 4
    head_width: int = 32
    double_layers: int = 2
    single_layers: int = 2


def new_pipeline(size: EditorSize, seed: int) -> FluxKontextPipeline:
    """An editor with random weights."""
    torch.manual_seed(seed)
    width = size.text_width
    words = t5_tokenizer()
    t5 = T5Config(
        vocab_size=len(words),
        d_model=width,
        d_kv=width // len(_LOOKS_AT),
        d_ff=2 * width,
        num_layers=size.text_layers,
        num_heads=len(_LOOKS_AT),
        # Words that belong together stand within a few of each other.
        relative_attention_num_buckets=32,
        relative_attention_max_distance=24,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    pooled = clip_tokenizer()
    clip = CLIPTextConfig(
        vocab_size=len(pooled),
        hidden_size=64,
        intermediate_size=128,
        projection_dim=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=_POOLED_TOKENS,
        bos_token_id=pooled.bos_token_id,
        eos_token_id=pooled.eos_token_id,
        pad_token_id=pooled.pad_token_id,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=size.vae_channels,
        layers_per_block=1,
        latent_channels=size.latent_channels,
        norm_num_groups=4,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=64,
        shift_factor=0.0,
        scaling_factor=1.0,
    )
    rotary = size.head_width // 8 * 3
    transformer = FluxTransformer2DModel(
        in_channels=4 * size.latent_channels,
        num_layers=size.double_layers,
        num_single_layers=size.single_layers,
        attention_head_dim=size.head_width,
        num_attention_heads=size.heads,
        joint_attention_dim=width,
        pooled_projection_dim=64,
        guidance_embeds=False,
        axes_dims_rope=(size.head_width - 2 * rotary, rotary, rotary),
    )
    return FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=CLIPTextModel(clip),
        tokenizer=pooled,
        text_encoder_2=_looking_near(T5EncoderModel(t5)),
        tokenizer_2=words,
        transformer=transformer,
    )


@torch.no_grad()
def _looking_near(encoder: T5EncoderModel) -> T5EncoderModel:
    """The encoder, each head of which looks at words some places before or after its own.

    A caption is a list of things at places. From an even start a word sees the whole list, and to find out which words
    belong together takes longer than all the rest: after as many steps as now draw 0.79 of captioned things, none.
    """
    attention = encoder.encoder.block[0].layer[0].SelfAttention  # its biases serve all layers
    count, furthest = attention.relative_attention_num_buckets, attention.relative_attention_max_distance
    distances = torch.arange(1 - CAPTION_TOKENS, CAPTION_TOKENS)
    bucket_of = attention._relative_position_bucket(distances, True, count, furthest)
    for bucket in bucket_of.unique():
        off = (distances[bucket_of == bucket][:, None] - torch.tensor(_LOOKS_AT)).abs().amin(0)
        attention.relative_attention_bias.weight[bucket] = -(_FALL * off).clamp(max=8.0)
    return encoder


def _words() -> list[str]:
    """The world's words, numbers, marks and letters."""
    return [word for word in vocabulary() if word not in SPECIAL_TOKENS and not word.startswith("##")]


def t5_tokenizer() -> T5TokenizerFast:
    """A token a word; the commas that part a caption cost none. Other words are spelt."""
    words = [*_words(), *(f"{number}," for number in range(1, GRID + 1)), "weather,"]
    letters = [word for word in _words() if len(word) == 1]
    pieces = [("▁", -5.0), *(("▁" + word, -1.0) for word in words), *((letter, -10.0) for letter in letters)]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces]
    return T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=CAPTION_TOKENS)


def clip_tokenizer() -> CLIPTokenizer:
    """A token a word, which byte pairs build letter by letter."""
    letters = sorted(word for word in _words() if len(word) == 1)
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    ranks: dict[tuple[str, str], int] = {}
    for word in filter(str.isalpha, _words()):
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            # What earlier words merge first stays as it is: a pair of this word comes after all of theirs.
            known = [(ranks[pair], place) for place, pair in enumerate(pairwise(parts)) if pair in ranks]
            place = min(known)[1] if known else 0
            pair = (parts[place], parts[place + 1])
            ranks.setdefault(pair, len(ranks))
            parts[place : place + 2] = ["".join(pair)]
    tokens += dict.fromkeys("".join(pair) for pair in ranks)
    vocab = {token: index for index, token in enumerate([*dict.fromkeys(tokens), _START, _END])}
    return CLIPTokenizer(vocab, list(ranks), model_max_length=_POOLED_TOKENS)
