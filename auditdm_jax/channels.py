"""[host] The auditor's channels: it asks a question, or it writes what changes the image that a question is asked of.

    question   auditor -> question                           new question, old image
    edit       auditor -> command -> editor    -> new image  new or old question, new image
    caption    auditor -> caption -> generator -> new image  new or old question, new image

(Paper, section 3: Q* = A(I', p_q), C = A(I, p_c), E = A(I, p_e).) A new question is asked by the auditor that is
trained, of the new image; an old one was asked of the old image by the auditor before training, because a folder of
images comes without questions. The reward credits what was written for the channel, and a new question with it.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt8

from auditdm_jax.choice import Choice
from auditdm_jax.config import Probing, TrainConfig
from auditdm_jax.layout import QUESTION, Layout, layout
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
    images: UInt8[Array, "N H W 3"]
    questions: Completions
    empty: Bool[Array, "B G"]
    overlong: Bool[Array, "B G"]
    spoiled: Bool[Array, "B G"]
    faults: dict[str, Bool[Array, "N"]]
    skips: Mapping[str, int]


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
        keys, images = jax.random.split(key, 4), jnp.asarray(images)
        shared_out = layout(self.probing, len(images))
        channels = np.array(shared_out.channels)
        limits = np.array(self.limits)[channels]
        prompt = prompt_rows(self.prompts, jnp.asarray(channels))
        written = self._written(shared_out, params, prompt, images, keys[0], generations, begun)
        words, empty, overlong = words_of(written, self.config)
        overlong |= written.mask.sum(-1) > jnp.asarray(limits)[:, None]
        repeated = jnp.repeat(images, generations, axis=0)
        given = repeated, written.ids, words, ~(empty | overlong)
        texts, probed, faults, skips = self._render(shared_out, *given, keys[1])
        questions = self._questions(shared_out, params, base, images, probed, written, keys[2:])
        _, no_question, too_long = words_of(questions, self.config)
        shape = empty.shape
        return Probes(
            prompt,
            written,
            texts,
            probed,
            questions,
            empty | no_question.reshape(shape),
            overlong | too_long.reshape(shape),
            jnp.stack(list(faults.values())).any(0).reshape(shape),
            faults,
            skips,
        )

    def _written(
        self,
        shared_out: Layout,
        params: Any,
        prompt: Prompt,
        images: Array,
        key: Array,
        generations: int,
        begun: Begun | None,
    ) -> Completions:
        """What is written of each image for its channel, [B, G, T], padded to the longest."""
        spans = shared_out.spans(self.limits)
        channels, longest = np.array(shared_out.channels), max(tokens for _, tokens in spans)
        parts = []
        for number, (rows, tokens) in enumerate(spans):
            place = np.array(rows)
            some = Prompt(prompt.input_ids[place], prompt.attention_mask[place])
            given = params, some, images[place], jax.random.fold_in(key, number)
            if self.choice is not None:
                part = self._chosen(self.choice, *given, channels[place], tokens, topical=True)
            else:
                begins = None  # a span is of questions alone or has none, and only questions are begun
                if begun is not None and channels[rows[0]] == QUESTION:
                    begins = Begun(begun.ids[place], begun.mask[place])
                part = self._ask(*given, generations, tokens, begins)
            parts.append(self._padded(part, longest))
        order = np.argsort(np.concatenate([rows for rows, _ in spans]))
        return jax.tree.map(lambda *x: jnp.concatenate(x)[order], *parts)

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
        *,
        topical: bool,
    ) -> Completions:
        """One candidate of each image, [B, 1, T]. topical: some are questions that begin with a topic, but none of an
        image that repeats the one before it, which fills up a batch."""
        asks = channels == QUESTION
        if topical:
            shown = np.asarray(images)
            asks[1:] &= (shown[1:] != shown[:-1]).any((1, 2, 3))
        begun = choice.begun(asks, tokens) if topical and asks.any() else None
        count = choice.guide.candidates if begun is None else begun.ids.shape[1]
        written = self._ask(params, prompt, images, key, count, tokens, begun)
        return choice.pick(written, channels, asks, jax.random.fold_in(key, 2**30))

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
        self, shared_out: Layout, images: Array, ids: Array, words: Array, ends_well: Array, key: Array
    ) -> tuple[list[str], Array, dict[str, Array], Mapping[str, int]]:
        """N texts and images, those of the edit and caption channels made anew; their faults; the renderer's skips."""
        texts, usable = texts_of(self.tokenizer, ids, words), np.asarray(ends_well).reshape(-1)
        skips: Counter[str] = Counter()
        faults = {name: jnp.zeros(len(images), bool) for name in FAULTS}
        seeds = np.asarray(jax.random.bits(key, (len(images),))).tolist()
        generations = len(images) // len(shared_out.channels)
        for channel in ("edit", "caption"):
            rows = (shared_out.through(channel)[:, None] * generations + np.arange(generations)).reshape(-1).tolist()
            if not rows:
                continue
            assert self.studio is not None  # it was loaded for these channels
            renderer = self.studio.editor if channel == "edit" else self.studio.generator
            assert renderer is not None
            before, places = renderer.counts.copy(), jnp.array(rows)
            wanted = [texts[row] if usable[row] else "" for row in rows]
            made, flaws = self.studio.render(channel, images[places], wanted, [seeds[row] for row in rows])
            images = images.at[places].set(made)
            for name in FAULTS:
                faults[name] = faults[name].at[places].set(getattr(flaws, name) & jnp.asarray(usable[rows]))
            for name in SKIPS:
                skips[f"{channel}/{name.replace(' ', '_')}"] = renderer.counts[name] - before[name]
        return texts, images, faults, skips

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
            rows = old[:, None] * generations + np.arange(generations)
            asked = jax.tree.map(lambda all_, some: all_.at[rows].set(some[:, None]), asked, asks)
        if len(new):
            rows = (new[:, None] * generations + np.arange(generations)).reshape(-1)
            given = params, self.question_prompt(len(rows)), probed[rows], keys[1]
            if self.choice is None:
                asks = self._ask(*given, 1, tokens)
            else:
                asks = self._chosen(self.choice, *given, np.full(len(rows), QUESTION), tokens, topical=False)
            asked = jax.tree.map(lambda all_, some: all_.at[rows].set(some), asked, asks)
        return asked

    def question_prompt(self, images: int) -> Prompt:
        """[images, P]: the prompt of a question of each image."""
        return prompt_rows(self.prompts, jnp.full(images, QUESTION))
