"""[host] The auditor's channels: it asks a question, or it writes what changes the image that a question is asked of.

    question   auditor -> question                           new question, old image
    edit       auditor -> command -> editor    -> new image  new or old question, new image
    caption    auditor -> caption -> generator -> new image  new or old question, new image

(Paper, section 3: Q* = A(I', p_q), C = A(I, p_c), E = A(I, p_e).) A new question is asked by the auditor that is
trained, of the new image; an old one was asked of the old image by the auditor before training, because a folder of
images comes without questions. The reward credits what was written for the channel, and a new question with it.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt8, UInt32

from auditdm_jax.checks import Faults
from auditdm_jax.choice import Choice
from auditdm_jax.config import Probing, TrainConfig
from auditdm_jax.layout import QUESTION, Layout, layout, probes_of
from auditdm_jax.models.multimodal import VLMConfig
from auditdm_jax.models.vlm import VLM
from auditdm_jax.prompts import texts_of
from auditdm_jax.rollout import ask, prompt_rows, words_of
from auditdm_jax.sampling import Begun, Completions, Prompt
from auditdm_jax.studio import Studio

FAULTS = ("collapsed", "no_effect", "drifted")
"""Why a new image counts for nothing, see `checks.Faults`."""
SKIPS = ("truncated prompt", "not a number", "unsafe")
"""What befell the renderer, see `counterfactuals`; an image that it could not make is collapsed or without effect."""


def instructions_of(config: TrainConfig) -> list[str]:
    """What the auditor is told for each of `CHANNELS`; who only asks needs no other."""
    probing = config.probing
    others = [probing.command_instruction, probing.caption_instruction] if probing.channels != ("question",) else []
    return [config.instruction, *others]


def limits_of(config: TrainConfig) -> tuple[int, int, int]:
    """The most tokens of what is written for each of `CHANNELS`."""
    return config.max_question_tokens, config.probing.max_command_tokens, config.probing.max_caption_tokens


Made = dict[str, tuple[UInt8[Array, "n H W 3"], Faults]]
"""What the edit and caption channels' texts were made into."""


class Written(NamedTuple):
    """What was written of B images with G completions each. words: its tokens but for ends; empty, overlong: of what
    was written alone; seeds: of the images that it may be made into."""

    prompt: Prompt
    completions: Completions
    words: Bool[Array, "B G T"]
    empty: Bool[Array, "B G"]
    overlong: Bool[Array, "B G"]
    seeds: UInt32[Array, "N"]


class Probes(NamedTuple):
    """What B images were made into with G completions each, and what is asked; N = B * G, image by image.

    prompt: of each image, [B, P]. written: the completions that are credited, [B, G, T]; texts: the same as N strings.
    images: what is asked about. questions: ids and mask [N, 1, T], ends included. empty, overlong: what was written or
    the question is; spoiled: the new image counts for nothing. faults: why, of each of the N images; skips: what befell
    the renderer, how often, by "channel/name".
    """

    prompt: Prompt
    written: Completions
    texts: list[str]
    skips: Mapping[str, int]
    images: UInt8[Array, "N H W 3"]
    questions: Completions
    empty: Bool[Array, "B G"]
    overlong: Bool[Array, "B G"]
    spoiled: Bool[Array, "B G"]
    faults: dict[str, Bool[Array, "N"]]


@dataclass(frozen=True, eq=False)
class Prober:
    """How an auditor probes: its configuration, tokenizer and prompts ([C, P], in the order of `CHANNELS`), the
    channels, the most tokens of a question, a command and a caption, the sampling temperature, the pipelines. choice:
    among candidates, for an audit; else all that is written is asked."""

    config: VLMConfig
    tokenizer: Any
    prompts: Prompt
    probing: Probing
    limits: tuple[int, int, int]
    temperature: float
    studio: Studio | None
    choice: Choice | None = None

    @classmethod
    def of_run(
        cls,
        config: TrainConfig,
        auditor: VLM,
        prompts: Prompt,
        temperature: float,
        studio: Studio | None,
        choice: Choice | None = None,
    ) -> "Prober":
        """As the run is set."""
        settings = config.probing, limits_of(config), temperature
        return cls(auditor.config, auditor.tokenizer, prompts, *settings, studio, choice)

    def __call__(
        self,
        params: Any,
        base: Any,
        images: UInt8[Array, "B H W 3"],
        key: Array,
        generations: int,
        begun: Begun | None = None,
    ) -> Probes:
        """G = `generations` probes of each image; with a choice one.

        params: of the auditor that writes, and asks new questions; base: of the one that asks old questions. begun: as
        `sample` has it, of a question's length; a choice has its own.
        """
        images, shared_out = jnp.asarray(images), layout(self.probing, len(images))
        write, follow = self.compiled if self.studio and self.choice is None else (self._write, self._follow)
        written = write(shared_out, params, images, key, generations, begun)
        texts, made, skips = self._render(shared_out, images, written)
        # All of it bound to the device: as otherwise some is, what was rendered, and some is not.
        given = jax.device_put((images, written, made, key), images.sharding)
        return Probes(written.prompt, written.completions, texts, skips, *follow(shared_out, params, base, *given))

    @cached_property
    def compiled(self) -> tuple[Callable, Callable]:
        """What is before the renderer, and behind it, each compiled. Who only asks has `ask`, for all probers."""
        bare = replace(self, studio=None, tokenizer=None)  # else pipelines would live on in a circle of references
        write = jax.jit(bare._write, static_argnames=("shared_out", "generations"))
        return write, jax.jit(bare._follow, static_argnames="shared_out")

    def _write(
        self,
        shared_out: Layout,
        params: Any,
        images: UInt8[Array, "B H W 3"],
        key: Array,
        generations: int,
        begun: Begun | None,
    ) -> Written:
        """What is written of each image for its channel, padded to the longest."""
        spans, keys = shared_out.spans(self.limits), jax.random.split(key, 4)
        channels, longest = np.array(shared_out.channels), max(tokens for _, tokens in spans)
        prompt = prompt_rows(self.prompts, jnp.asarray(channels))
        parts = []
        for number, (rows, tokens) in enumerate(spans):
            place = np.array(rows)
            some = Prompt(prompt.input_ids[place], prompt.attention_mask[place])
            given = params, some, images[place], jax.random.fold_in(keys[0], number)
            if self.choice is not None:
                part = self._chosen(self.choice, *given, channels[place], tokens, shared_out.asks().mean())
            else:
                begins = None  # a span is of questions alone or has none, and only questions are begun
                if begun is not None and channels[rows[0]] == QUESTION:
                    begins = Begun(begun.ids[place], begun.mask[place])
                part = self._ask(*given, generations, tokens, begins)
            parts.append(self._padded(part, longest))
        order = np.argsort(np.concatenate([rows for rows, _ in spans]))
        completions = jax.tree.map(lambda *x: jnp.concatenate(x)[order], *parts)
        words, empty, overlong = words_of(completions, self.config)
        overlong |= completions.mask.sum(-1) > np.array(self.limits)[channels][:, None]
        return Written(prompt, completions, words, empty, overlong, jax.random.bits(keys[1], (empty.size,)))

    def _padded(self, written: Completions, tokens: int) -> Completions:
        """The completions at a length, longer or shorter than they have."""
        ids, mask, logps = (x[..., :tokens] for x in (written.ids, written.mask, written.logps))
        width = ((0, 0), (0, 0), (0, tokens - ids.shape[-1]))
        ids = jnp.pad(ids, width, constant_values=self.config.pad_token_id)
        return Completions(ids, jnp.pad(mask, width), jnp.pad(logps, width), written.ends)

    def _chosen(
        self,
        choice: Choice,
        params: Any,
        prompt: Prompt,
        images: Array,
        key: Array,
        channels: np.ndarray,
        tokens: int,
        asked: float,
    ) -> Completions:
        """One candidate of each image, [B, 1, T]. asked: share of all images that are asked about as they are. Some of
        these have questions that begin with a topic, but none of an image that repeats the one before it, which fills
        up a batch. 0: none has."""
        asks = channels == QUESTION
        if asked:
            shown = np.asarray(images)
            asks[1:] &= (shown[1:] != shown[:-1]).any((1, 2, 3))
        begun = choice.begun(asks, tokens) if asked and asks.any() else None
        count = choice.guide.candidates if begun is None else begun.ids.shape[1]
        written = self._ask(params, prompt, images, key, count, tokens, begun)
        return choice.pick(written, channels, asks, jax.random.fold_in(key, 2**30), asked)

    def _ask(
        self,
        params: Any,
        prompt: Prompt,
        images: Array,
        key: Array,
        generations: int,
        tokens: int,
        begun: Begun | None = None,
    ) -> Completions:
        sampling = dict(num_generations=generations, max_new_tokens=tokens, temperature=self.temperature)
        return ask(params, self.config, prompt, images, key, begun=begun, **sampling)

    def _render(
        self, shared_out: Layout, images: UInt8[Array, "B H W 3"], written: Written
    ) -> tuple[list[str], Made, Mapping[str, int]]:
        """The N texts, what those of the edit and caption channels were made into, and the renderer's skips."""
        texts = texts_of(self.tokenizer, written.completions.ids, written.words)
        usable = ~(np.asarray(written.empty) | np.asarray(written.overlong)).reshape(-1)
        seeds, generations = np.asarray(written.seeds).tolist(), written.empty.shape[1]
        made, skips = {}, Counter[str]()
        for channel in ("edit", "caption"):
            rows = shared_out.probes(channel, generations)
            if not len(rows):
                continue
            assert self.studio is not None  # it was loaded for these channels
            renderer = self.studio.editor if channel == "edit" else self.studio.generator
            assert renderer is not None
            before, wanted = renderer.counts.copy(), [texts[row] if usable[row] else "" for row in rows]
            made[channel] = self.studio.render(channel, images[rows // generations], wanted, [seeds[r] for r in rows])
            for name in SKIPS:
                skips[f"{channel}/{name.replace(' ', '_')}"] = renderer.counts[name] - before[name]
        return texts, made, skips

    def _follow(
        self,
        shared_out: Layout,
        params: Any,
        base: Any,
        images: UInt8[Array, "B H W 3"],
        written: Written,
        made: Made,
        key: Array,
    ) -> tuple[Array, Completions, Array, Array, Array, dict[str, Array]]:
        """Of `Probes` what comes behind the renderer: images, questions, empty, overlong, spoiled, and faults."""
        shape = written.empty.shape
        probed = jnp.repeat(images, shape[1], axis=0)
        usable = ~(written.empty | written.overlong).reshape(-1)
        faults = {name: jnp.zeros(len(probed), bool) for name in FAULTS}
        for channel, (new, flaws) in made.items():
            rows = shared_out.probes(channel, shape[1])
            probed = probed.at[rows].set(new)
            for name in FAULTS:
                faults[name] = faults[name].at[rows].set(getattr(flaws, name) & usable[rows])
        keys = jax.random.split(key, 4)[2:]
        questions = self._questions(shared_out, params, base, images, probed, written.completions, keys)
        _, no_question, too_long = words_of(questions, self.config)
        empty, overlong = written.empty | no_question.reshape(shape), written.overlong | too_long.reshape(shape)
        return probed, questions, empty, overlong, jnp.stack(list(faults.values())).any(0).reshape(shape), faults

    def _questions(
        self,
        shared_out: Layout,
        params: Any,
        base: Any,
        images: Array,
        probed: Array,
        written: Completions,
        keys: Array,
    ) -> Completions:
        """The question of each probe, [N, 1, T]: what was written, an old one of the image, or a new one."""
        tokens = self.limits[QUESTION]
        generations = len(probed) // len(images)
        asked = self._padded(jax.tree.map(lambda x: x.reshape(len(probed), 1, x.shape[-1]), written), tokens)
        old, new = np.flatnonzero(shared_out.old), np.flatnonzero(shared_out.new())
        if len(old):
            asks = self._ask(base, self.question_prompt(len(old)), images[old], keys[0], 1, tokens)
            rows = probes_of(old, generations).reshape(-1, generations)
            asked = jax.tree.map(lambda all_, some: all_.at[rows].set(some[:, None]), asked, asks)
        if len(new):
            rows = probes_of(new, generations)
            given = params, self.question_prompt(len(rows)), probed[rows], keys[1]
            if self.choice is None:
                asks = self._ask(*given, 1, tokens)
            else:
                asks = self._chosen(self.choice, *given, np.full(len(rows), QUESTION), tokens, 0.0)
            asked = jax.tree.map(lambda all_, some: all_.at[rows].set(some), asked, asks)
        return asked

    def question_prompt(self, images: int) -> Prompt:
        """[images, P]: the prompt of a question of each image."""
        return prompt_rows(self.prompts, jnp.full(images, QUESTION))
