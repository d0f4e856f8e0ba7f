"""Settings of the three commands: frozen dataclasses, read by tyro, checked before anything is computed.

Those of the policy gradient (`GRPO`) are in conventions.py, those of the reward (`Reward`) in reward.py.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

import tyro

from auditdm_jax.conventions import GRPO
from auditdm_jax.errors import UserError, at_least_one, check_name, check_seed
from auditdm_jax.places import at_home, images_from_anywhere, name_from_anywhere
from auditdm_jax.prompts import CAPTION_INSTRUCTION, COMMAND_INSTRUCTION, QUESTION_INSTRUCTION
from auditdm_jax.reward import Reward
from auditdm_jax.scenes.zoo_paths import same_model

Channel = Literal["question", "edit", "caption"]
CHANNELS: tuple[Channel, ...] = get_args(Channel)


@dataclass(frozen=True)
class RenderSettings:
    """How images are rendered; None is the default of the pipeline's directory, or of its class (`family_of`)."""

    steps: int | None = None
    """Denoising steps."""
    guidance: float | None = None
    """Weight of the text; 1 = no classifier-free guidance."""
    image_guidance: float | None = None
    """Weight of the input image; only InstructPix2Pix has it."""
    size: int | tuple[int, int] | None = None
    """Height and width that the pipeline works at; None = the image's own, to which what it draws is resized anyway."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the weights; None = bfloat16 on a GPU, float32 on a CPU, where bfloat16 may take twenty times as long."""
    device: str | None = None
    """As torch names it; None = the GPU where torch sees one."""
    micro_batch_size: int | None = None
    """Images rendered at once."""
    cpu_offload: bool = False
    """Keeps on the GPU only the part of the pipeline that is at work: slower, in much less of its memory."""

    def __post_init__(self) -> None:
        at_least_one(self, "steps", "micro_batch_size")


@dataclass(frozen=True)
class Probing:
    """The channels of the audit: what the auditor writes, and what becomes of it."""

    channels: tuple[Channel, ...] = ("question",)
    """The auditor asks a question of the image, or writes a command that an editor carries out, or a caption from
    which a generator makes a new image; the images are shared out among these."""
    channel_weights: tuple[float, ...] = ()
    """Share of the images that each channel has, in the same order; by default equal, but ten times as much for
    questions as for each other (in a small batch less, so that every channel has an image)."""
    new_images_every: int | None = None
    """Of so many steps one goes through all channels; in the others the auditor asks about the images as they are,
    which takes a fraction of the time. By default 4 where the auditor asks and makes new images, else 1."""
    editor: str = "editor"
    """Diffusion pipeline that carries out commands: the zoo's, a pipeline directory or a hub id."""
    generator: str = "editor"
    """Diffusion pipeline that draws captions."""
    old_questions: float | None = None
    """Share of the new images, of each channel in a batch, that are asked what the auditor before training asked of the
    old image; the others are asked a new question. By default 0 where the channel question is there, too, else 0.5."""
    command_instruction: str = COMMAND_INSTRUCTION
    """p_e: what the auditor is told for a command."""
    caption_instruction: str = CAPTION_INSTRUCTION
    """p_c: what the auditor is told for a caption."""
    max_command_tokens: int = 16
    """Commands that have not ended by then are over-long and earn nothing."""
    max_caption_tokens: int = 32
    """Captions that have not ended by then are over-long and earn nothing."""
    render: RenderSettings = field(default_factory=RenderSettings)

    def __post_init__(self) -> None:
        if not self.channels or len(set(self.channels)) < len(self.channels):
            named = " ".join(self.channels) or "empty"
            raise UserError(f"channels is {named}: name each of {', '.join(CHANNELS)} once")
        if self.channel_weights and len(self.channel_weights) != len(self.channels):
            raise UserError(
                f"channel-weights has {len(self.channel_weights)} numbers for {len(self.channels)} channels: "
                "give one for each"
            )
        if any(not 0 < weight < float("inf") for weight in self.channel_weights):
            raise UserError("channel-weights must be above 0: leave a channel out instead")
        if (self.new_images_every or 1) > 1 and not self.mixed:
            raise UserError(
                "new-images-every needs the channel question, for the steps between, and one that makes new images; "
                "add to --channels what is missing"
            )
        if not 0 <= self.old_share <= 1:
            raise UserError(f"old-questions is {self.old_questions}: it is a share, from 0 to 1")
        at_least_one(self, "new_images_every", "max_command_tokens", "max_caption_tokens")
        name_from_anywhere(self, "editor", "generator")

    @property
    def mixed(self) -> bool:
        """Whether the auditor asks about images as they are, too, and new ones are the smaller part."""
        return {"question"} < set(self.channels)

    @property
    def every(self) -> int:
        """`new_images_every`, or its default."""
        return (4 if self.mixed else 1) if self.new_images_every is None else self.new_images_every

    @property
    def old_share(self) -> float:
        """`old_questions`, or its default."""
        return (0.0 if self.mixed else 0.5) if self.old_questions is None else self.old_questions

    def weights(self, images: int) -> tuple[float, ...]:
        """`channel_weights`, or their default for a batch of some images."""
        many = max(1, min(10, images - len(self.channels) + 1))
        return self.channel_weights or tuple(many if name == "question" else 1 for name in self.channels)


@dataclass(frozen=True)
class Models:
    """Zoo names, checkpoint directories or hub ids."""

    auditor: str = "auditor"
    """The model that learns to ask."""
    target: str = "target-s"
    """The model whose failures are sought."""
    references: tuple[str, ...] = ("reference-a", "reference-b", "reference-c")
    """The ensemble whose agreement is taken for the truth."""
    verifier: str = "verifier"
    """Judges discoveries where no oracle can; takes no part in training."""

    def __post_init__(self) -> None:
        name_from_anywhere(self, "auditor", "target", "references", "verifier")
        if any(same_model(self.target, name) for name in self.references):
            raise UserError(f"the references contain the target {self.target!r}: leave it out of --references")
        if not self.references:
            raise UserError("references is empty: name at least one model (two or more are needed for agreement)")


def check_rank(lora_rank: int) -> None:
    """Raises UserError for a negative one."""
    if lora_rank < 0:
        raise UserError(f"lora-rank is {lora_rank}: it must be 0 (all parameters train) or more")


@dataclass(frozen=True)
class RunPaths:
    """Where a run lives."""

    name: str = "default"
    """Name of the run: a folder under `out`."""
    out: str = "runs"
    """Folder of all runs."""
    seed: int = 0
    """Seeds everything that is drawn."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_name(self.name)
        at_home(self, "out")


@dataclass(frozen=True)
class TrainConfig(RunPaths):
    """Train an auditor to ask what the target gets wrong while the references agree."""

    steps: int = 880
    """Updates of the auditor."""
    images: tuple[str, ...] = ()
    """Folder, globs, Parquet file or data set of images; without it, the embedded world of scenes."""
    images_per_step: int = 12
    """B: images a step asks about."""
    models: Annotated[Models, tyro.conf.arg(name="")] = field(default_factory=Models)
    probing: Annotated[Probing, tyro.conf.arg(name="")] = field(default_factory=Probing)
    reward: Reward = field(default_factory=Reward)
    grpo: GRPO = field(default_factory=GRPO)
    instruction: str = QUESTION_INSTRUCTION
    """p_q: what the auditor is told."""
    max_question_tokens: int = 11
    """Questions that have not ended by then are over-long and earn nothing."""
    max_answer_tokens: int = 3
    """Answers are cut there."""
    lora_rank: int = 0
    """Rank of the low-rank adapters that train; 0 trains all parameters."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the frozen models and of the computation."""
    remat: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    probe_every: int = 50
    """Steps between two measurements of claimed and verified success on images held out from training."""
    checkpoint_every: int = 100
    """Steps between two checkpoints."""
    resume: bool = False
    """Go on from the newest checkpoint of this run."""
    overwrite: bool = False
    """Begin again where this name already has a run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "images", images_from_anywhere(self.images))
        counts = ("steps", "images_per_step", "max_question_tokens", "max_answer_tokens")
        at_least_one(self, *counts, "probe_every", "checkpoint_every")
        check_rank(self.lora_rank)
        if (self.grpo.soft_punish_cache or 0) > self.max_question_tokens:
            raise UserError("grpo.soft-punish-cache is above max-question-tokens: even the shortest question would pay")
        if self.reward.disagreement == "share" and len(self.models.references) < 2:
            raise UserError("reward.disagreement is share with one reference: name two or more, or leave it binary")

    @property
    def topics(self) -> tuple[str, ...]:
        """What some questions begin with; nothing where none has to, or none is written of an image as it is."""
        return self.reward.topics if self.reward.topic_share and "question" in self.probing.channels else ()


@dataclass(frozen=True)
class AuditConfig(RunPaths):
    """One pass of the trained auditor over unseen images: what the target is bad at."""

    images: tuple[str, ...] = ()
    """As for train; by default what the run was trained on: the images it held out, or unseen scenes."""
    questions: int = 2000
    """How many images are asked about, one question each."""
    prompt_only_questions: int = 1000
    """On how many of them the auditor before training is measured beside the trained one."""
    auditor: str = ""
    """The auditor to measure; by default the run's trained one, without a run the zoo's untrained one."""
    target: str = ""
    """The model to audit; by default the run's target."""
    references: tuple[str, ...] = ()
    """By default the run's references."""
    verifier: str = ""
    """Judges discoveries on images other than scenes; by default the run's verifier."""
    temperature: float = 0.4
    """Of both auditors, when they ask: lower finds more failures, of fewer kinds. Training has one of its own."""
    candidates: int = 8
    """Questions that the run's auditor draws of an image: the one is asked that its critic finds likeliest to show a
    failure. 1: as drawn. The auditor before training has no critic."""
    topic_share: float = 0.08
    """Claimed failures that questions with a topic are to bring, each topic as many, as a share of the audit's images
    (of a run that has topics, see reward.topic-share). Topics are asked where the critic finds them worth it, the
    cheapest first, as long as they cost 2 % of the failures, and where they cost little."""
    batch_size: int = 256
    """Images that go through a model at once. What came of a batch's topics counts when the next one's are chosen."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "images", images_from_anywhere(self.images))
        name_from_anywhere(self, "auditor", "target", "references", "verifier")
        at_least_one(self, "questions", "prompt_only_questions", "candidates", "batch_size")
        if not 0 <= self.topic_share <= 1:
            raise UserError(f"topic-share is {self.topic_share}: it is a share, from 0 to 1")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}: it must be 0 (always the likeliest word) or more")


@dataclass(frozen=True)
class RectifyConfig(RunPaths):
    """Fine-tune the target on what the audit found, labelled by the ensemble; evaluate before, after, and a control."""

    discoveries: str = ""
    """A discoveries file; by default the run's own."""
    target: str = ""
    """The model to repair; by default the one that the run's audit was of."""
    references: tuple[str, ...] = ()
    """By default those of the run's audit."""
    images: tuple[str, ...] = ()
    """Further images to ask about; by default those the run was trained on, else those it was audited on."""
    steps: int = 1000
    """Updates in each arm. A skill is learned in a jump, late: after 600 half of the jumps are missing."""
    images_per_step: int = 16
    """Images in an update."""
    questions_per_image: int = 8
    """Questions of each image in an update; even, because half are the audit's."""
    pool: int = 768
    """Images that are asked about to make the training questions, beside as many of the discoveries' own."""
    optimizer: Literal["adamw", "muon"] = "muon"
    """Muon is for matrices: embeddings, norms, biases and low-rank adapters learn by Adam, at 0.3 of the rate."""
    learning_rate: float = 1e-2
    """Peak of the learning rate."""
    lora_rank: int = 0
    """Rank of the low-rank adapters that train; 0 trains all of the target's parameters."""
    remat: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    test_questions: int = 2000
    """Test questions about scenes, in equal numbers over the skills; of other images all that have a consensus."""
    batch_size: int = 256
    """Questions that a model answers at once; the auditors write those of half as many images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_home(self, "discoveries")
        name_from_anywhere(self, "target", "references")
        at_least_one(self, "steps", "images_per_step", "test_questions", "batch_size")
        check_rank(self.lora_rank)
        if not 0 < self.learning_rate < float("inf"):
            raise UserError(f"learning-rate is {self.learning_rate}: it must be above 0")
        if self.questions_per_image % 2 or self.questions_per_image < 2:
            raise UserError(f"questions-per-image is {self.questions_per_image}: it must be even, half are the audit's")
        if self.pool < self.images_per_step:
            raise UserError(f"pool is {self.pool}: it must be at least the {self.images_per_step} images of a step")
