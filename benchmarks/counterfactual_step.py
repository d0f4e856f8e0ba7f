"""Where the time of a training step through all channels goes: the models, the renderer, and everything else.

    python benchmarks/counterfactual_step.py

The zoo's models and its editor, as many images in each channel. Each compiled part is
waited for, so that its time is its own; what is left is the work outside models and renderer: text, checks of the new
images, and the way of the images between the libraries.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import tyro

from auditdm_jax import channels, collect_probes, step, training
from auditdm_jax.config import CHANNELS, Probing, TrainConfig
from auditdm_jax.state import AuditState
from auditdm_jax.studio import Studio


@dataclass(frozen=True)
class Config:
    """How long to measure."""

    warmup: int = 2
    """Steps before, which compile."""
    steps: int = 10


def timed(spent: dict[str, float], name: str, function: Callable) -> Callable:
    """The function, its time counted under a name. None that is counted may call another."""

    def call(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = jax.block_until_ready(function(*args, **kwargs))
        spent[name] += time.perf_counter() - started
        return result

    return call


def prepared(run: TrainConfig, studio: Studio, spent: dict[str, float]) -> tuple[Callable, AuditState, training.Source]:
    """A run's step, its first state, and its images; the time of the models and the renderer is counted in `spent`."""
    players = training.load_players(run)
    studio.check_size(training.input_size(players))
    settings = training.step_settings(run)
    topics = training.topics_of(players.auditor, run.topics, run.max_question_tokens)
    cast = training.cast_of(players, channels.instructions_of(run), topics)
    prober = channels.Prober.of_run(run, players.auditor, cast.auditor.prompts, run.grpo.temperature, studio)
    vars(prober)["compiled"] = tuple(timed(spent, "models", function) for function in prober.compiled)
    watched: list[tuple[str, Any, str]] = [("models", collect_probes, "judged_compiled"), ("models", step, "update")]
    watched += [("renderer", studio.editor, "edit")] if studio.editor else []
    watched += [("renderer", studio.generator, "generate")] if studio.generator else []
    for name, owner, function in watched:
        setattr(owner, function, timed(spent, name, getattr(owner, function)))
    state = training.initial_state(run, players, settings.optimizer)
    source = training.open_source(run, training.input_size(players), "train")
    return step.make_step(cast, settings, prober=prober), state, source


def print_shares(spent: dict[str, float], total: float, steps: int) -> None:
    """Where the seconds of some steps went, a line for each name and one for the rest, most first."""
    rest = {"everything else": total - sum(spent.values())}
    for name, seconds in sorted((spent | rest).items(), key=lambda item: -item[1]):
        print(f"{name:<16} {seconds / steps:7.3f} s  {seconds / total:6.1%}")


def main(config: Config) -> None:
    alike = Probing(channels=CHANNELS, channel_weights=(1, 1, 1), new_images_every=1, old_questions=0.5)
    run, studio = TrainConfig(probing=alike), Studio.load(alike)
    assert studio
    spent = defaultdict[str, float](float)
    one_step, state, source = prepared(run, studio, spent)
    for _ in range(config.warmup):
        state, _, _ = one_step(state, next(source)["image"])
    spent.clear()
    started = time.perf_counter()
    for _ in range(config.steps):
        state, metrics, _ = one_step(state, next(source)["image"])
    jax.block_until_ready(metrics)
    total = time.perf_counter() - started
    print(f"{total / config.steps:.2f} s a step of {run.images_per_step} images x {run.grpo.num_generations}")
    print_shares(spent, total, config.steps)


if __name__ == "__main__":
    main(tyro.cli(Config, description=Config.__doc__))
