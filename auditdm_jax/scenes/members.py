"""The members of the zoo: the architecture, the data and the training of each tiny checkpoint."""

from dataclasses import dataclass

import jax
from transformers import (
    Gemma3Config,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Gemma3TextConfig,
    PaliGemmaConfig,
    PaliGemmaProcessor,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from auditdm_jax.models.vlm import VLM
from auditdm_jax.prompts import QUESTION_INSTRUCTION
from auditdm_jax.scenes.tokenizer import CHAT_TEMPLATE, build_tokenizer
from auditdm_jax.scenes.world import CELL, SIZE


@dataclass(frozen=True)
class Member:
    """One checkpoint of the zoo: its architecture, its data and its training."""

    name: str
    family: str
    """"paligemma" (SigLIP + Gemma 2) or "gemma3"."""
    seed: int
    """Seeds the weights and the training scenes; no two members share one."""
    steps: int
    width: int = 96
    """Of the decoder, which is run for every question and kept narrow; the tower is run once for each image."""
    text_layers: int = 3
    heads: int = 3
    mlp: int = 192
    vision_width: int = 128
    vision_layers: int = 3
    distribution: str = "uniform"
    """Of the training questions over skills: "natural" or "uniform"."""
    unanswerable: float = 0.0
    """Chance of each draw to try for a question without an answer in the scene, learned as "unclear"; about half of
    the tries find one."""
    description: float = 0.0
    """Share of training questions that ask what stands at a place."""
    doubts: int = 0
    """Steps behind the others, at a lower rate, with many questions that have no answer, nonsense among them: what an
    auditor under reward comes to ask must not be answered."""
    asks: bool = False
    """The auditor learns to write: questions of its distribution, commands and captions; and at first, in every third
    step, to answer uniform questions. Everything else learns to answer."""
    images: int = 32
    """Pictures in a training step: many, because seeing is what is learned last."""
    questions: int = 8
    """Questions of each picture in a training step."""
    learning_rate: float = 0.01
    base: str = ""
    """The member of the same architecture whose weights it starts from; by default it starts from nothing."""


MEMBERS = {
    member.name: member
    for member in (
        Member(
            "target-s",
            "paligemma",
            seed=1,
            steps=900,
            vision_layers=2,
            distribution="natural",
            description=0.2,
            images=16,
            questions=16,
        ),
        Member("target-l", "paligemma", seed=2, steps=1200, distribution="natural", description=0.25),
        Member("reference-a", "gemma3", seed=3, steps=4800, unanswerable=0.12, description=0.25),
        Member("reference-b", "paligemma", seed=4, steps=4000, doubts=1200, unanswerable=0.12, description=0.25),
        Member(
            "reference-c",
            "paligemma",
            seed=5,
            steps=3600,
            doubts=1200,
            vision_width=160,
            unanswerable=0.15,
            description=0.2,
        ),
        Member("verifier", "paligemma", seed=6, steps=2600, unanswerable=0.15, description=0.25),
        Member(
            "auditor",
            "gemma3",
            seed=7,
            steps=2400,
            base="reference-a",
            distribution="natural",
            asks=True,
            unanswerable=0.12,
            description=0.25,
            learning_rate=0.006,
        ),
    )
}


def new_model(member: Member, image_size: int = SIZE) -> VLM:
    """A member with random weights, from a Hugging Face configuration of its family."""
    image_tokens = (image_size // CELL) ** 2
    image_token = "<image>" if member.family == "paligemma" else "<image_soft_token>"
    tokenizer = build_tokenizer(QUESTION_INSTRUCTION, image_token)
    vision = SiglipVisionConfig(
        hidden_size=member.vision_width,
        intermediate_size=2 * member.vision_width,
        num_hidden_layers=member.vision_layers,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=CELL,
        projection_dim=member.width,
        vision_use_head=False,
    )
    text = dict(
        vocab_size=-(-len(tokenizer) // 16) * 16,
        hidden_size=member.width,
        intermediate_size=member.mlp,
        num_hidden_layers=member.text_layers,
        num_attention_heads=member.heads,
        num_key_value_heads=1,
        head_dim=32,
        # Gemma 2 does not normalise queries and keys; divided by the head's own size, its attention is a one-hot choice
        # before it has learned where to look.
        query_pre_attn_scalar=256 if member.family == "paligemma" else 32,
        max_position_embeddings=512,
        sliding_window=256,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    size = {"height": image_size, "width": image_size}
    if member.family == "paligemma":
        config = PaliGemmaConfig(
            text_config=dict(text, model_type="gemma2"),
            vision_config=vision.to_dict(),
            image_token_index=tokenizer.image_token_id,
            projection_dim=member.width,
            hidden_size=member.width,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        images = SiglipImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        images.image_seq_length = image_tokens
        processor = PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer)
    else:
        config = Gemma3Config(
            text_config=Gemma3TextConfig(**text).to_dict(),
            vision_config=vision.to_dict(),
            mm_tokens_per_image=image_tokens,
            boi_token_index=tokenizer.boi_token_id,
            eoi_token_index=tokenizer.eoi_token_id,
            image_token_index=tokenizer.image_token_id,
            eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")],
        )
        images = Gemma3ImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        processor = Gemma3Processor(
            image_processor=images, tokenizer=tokenizer, chat_template=CHAT_TEMPLATE, image_seq_length=image_tokens
        )
    return VLM.from_config(config, processor, jax.random.key(member.seed))
