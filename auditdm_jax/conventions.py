"""Whose policy gradient: every setting of the loss by TRL's names, and presets that say which library they follow.

Libraries compute different things under one name, so a preset names both: "grpo@trl". Those of TRL (1.16) and tunix
(0.1.7) are tested against their code, those of verl (0.9) against hand-computed numbers. Clip ranges are the library's
own or, where it has none for the method, those of the method's paper.
"""

from dataclasses import dataclass, replace
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import jax
import numpy as np

from auditdm_jax.advantages import ScaleRewards
from auditdm_jax.errors import UserError, and_nearest, at_least_one, check_choice
from auditdm_jax.policy_terms import KLEstimator, LossType, RatioLevel, SamplingCorrection


@dataclass(frozen=True)
class Convention:
    """Everything a loss depends on besides its arrays; the defaults are GRPO with the numbers of TRL."""

    advantage_estimator: Literal["group", "leave_one_out", "reinforce_plus_plus", "reinforce_plus_plus_baseline"] = (
        "group"
    )
    scale_rewards: ScaleRewards = "group"
    std_epsilon: float = 1e-4
    """Added to the standard deviation that divides."""
    soft_punish_cache: int = 0
    """Tokens over which the penalty for length rises to 1; 0 = no penalty."""
    loss_type: LossType = "grpo"
    count_empty: bool = True
    """Whether completions without tokens count in a mean over completions."""
    num_items_in_batch: Any | None = None
    """Tokens of the whole batch, where this is a part of it."""
    max_completion_length: int | None = None
    """For dr_grpo and the penalty for length; None = T."""
    num_iterations: int = 1
    """Updates with one batch; more than one need old_logps."""
    importance_sampling_level: RatioLevel = "token"
    log_ratio_clip: float = float("inf")
    """A token's log-ratio counts as this at most, and as minus this at least; inf = as it is."""
    epsilon: float = 0.2
    epsilon_high: float | None = None
    """None = epsilon."""
    delta: float | None = None
    """Bound of the ratio where A < 0 (dual clip); None = none."""
    cispo_range: Literal["absolute", "around_one"] = "absolute"
    """CISPO's weights: [0, epsilon_high], or [1 - epsilon, 1 + epsilon_high]."""
    beta: float = 0.0
    kl_estimator: KLEstimator = "k3"
    k3_clip: float | None = None
    """Largest k3 of a token in the loss; None = none."""
    use_bias_correction_kl: bool = False
    """Whether the KL in the loss is multiplied by the ratio: its gradient is then the reverse KL's."""
    kl_in_reward: bool = False
    """Whether the KL is subtracted from the reward instead of added to the loss."""
    importance_sampling_mode: SamplingCorrection = "none"
    """TRL's vllm_importance_sampling_mode; for a sampler of any kind here."""
    importance_sampling_clip_max: float | None = 3.0
    importance_sampling_clip_min: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _check(name, value)
        low, high = self.importance_sampling_clip_min, self.importance_sampling_clip_max
        if low is not None and high is not None and low > high:
            raise UserError(f"importance-sampling-clip-min is {low}, above the clip-max of {high}: no weight is left")

    @property
    def smallest_group(self) -> int:
        """Completions that an advantage compares, at least: REINFORCE++ takes its baseline from the whole batch."""
        return 1 if self.advantage_estimator == "reinforce_plus_plus" else 2

    @property
    def averages_empty(self) -> bool:
        """Whether the loss is a mean over all completions, with or without tokens."""
        return self.count_empty and self.loss_type in ("grpo", "rloo", "dr_grpo")


_HINTS = get_type_hints(Convention)
_COUNTS = ("soft_punish_cache", "max_completion_length", "num_iterations")
_ABOVE_ZERO = ("log_ratio_clip", "k3_clip", "importance_sampling_clip_max", "num_items_in_batch")
_FINITE = ("beta", "std_epsilon")
_COMPILED = ("beta", "importance_sampling_clip_min", "importance_sampling_clip_max", *_COUNTS)


def _check(name: str, value: Any) -> None:
    """Raises UserError for what a setting of `Convention` cannot be. What `jit` traces has no value to look at."""
    hint = _HINTS[name]
    if get_origin(hint) is Literal:
        return check_choice(name, value, hint)
    if isinstance(value, jax.core.Tracer) and name in _COMPILED:
        raise UserError(f"{name} is traced by jit: give a number, for it decides what is computed")
    if isinstance(value, jax.core.Tracer) or (value is None and NoneType in get_args(hint)):
        return None
    if hint is bool:
        if not isinstance(value, bool | np.bool_):
            raise UserError(f"{name} is {value!r}: it must be True or False")
        return None
    label = f"{name.replace('_', '-')} is {value!r}"
    if isinstance(value, str | bool) or np.ndim(value) or not np.isrealobj(value) or value is None:
        raise UserError(f"{label}: it must be one number")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"{label}: it must be one number") from None
    if name in _COUNTS and not number.is_integer():
        raise UserError(f"{label}: it must be a whole number")
    least = 1 if name in ("max_completion_length", "num_iterations") else 0
    if not number >= least:  # nan, too
        raise UserError(f"{label}: it must be {least} or more")
    if (name in _ABOVE_ZERO and not number) or (name in _FINITE and number == float("inf")):
        raise UserError(f"{label}: it must be {'finite' if number else 'above 0'}")


# Without use_bias_correction_kl, as the methods' papers have the KL and TRL had it before 1.10.
_TRL = Convention(importance_sampling_mode="sequence_mask")
_TIS = Convention(importance_sampling_mode="token_truncate", importance_sampling_clip_max=2.0)
_TUNIX = replace(_TIS, std_epsilon=1e-6, count_empty=False, log_ratio_clip=20.0, beta=0.04, kl_estimator="k1")
_VERL = replace(_TIS, std_epsilon=1e-6, count_empty=False, log_ratio_clip=20.0, loss_type="dapo", delta=3.0, k3_clip=10)
_GSPO: dict[str, Any] = dict(loss_type="grpo", epsilon=3e-4, epsilon_high=4e-4, beta=0.0)
_RLOO: dict[str, Any] = dict(advantage_estimator="leave_one_out")
_DR_GRPO: dict[str, Any] = dict(loss_type="dr_grpo", scale_rewards="none")
_IN_REWARD: dict[str, Any] = dict(kl_in_reward=True, kl_estimator="k1")

# Ours divides neither by the standard deviation, which weighs images up that nearly always or nearly never fool the
# target, nor by a question's own length, which favours short ones (arXiv:2503.20783). k2, because as a loss it has the
# gradient of the KL it stands for. No weights for the sampler: it shares the trainer's parameters; watch the drift.
DEFAULT_PRESET = "dr_grpo@auditdm"
PRESETS = {
    DEFAULT_PRESET: Convention(beta=0.03, kl_estimator="k2", **_DR_GRPO),
    "grpo@trl": _TRL,
    "bnpo@trl": replace(_TRL, loss_type="bnpo"),
    "dr_grpo@trl": replace(_TRL, **_DR_GRPO),
    "dapo@trl": replace(_TRL, loss_type="dapo", epsilon_high=0.28),
    "cispo@trl": replace(_TRL, loss_type="cispo", epsilon_high=5.0),
    "gspo@trl": replace(_TRL, importance_sampling_level="sequence", **_GSPO),
    "rloo@trl": Convention(
        loss_type="rloo", importance_sampling_level="sequence_sum", beta=0.05, **_RLOO, **_IN_REWARD
    ),
    "grpo@tunix": _TUNIX,
    "dr_grpo@tunix": replace(_TUNIX, **_DR_GRPO),
    "dapo@tunix": replace(_TUNIX, loss_type="dapo", epsilon_high=0.28, beta=0.0),
    "gspo-token@tunix": replace(_TUNIX, importance_sampling_level="sequence_token", **_GSPO),
    "rloo@tunix": replace(_TUNIX, **_RLOO),
    "grpo@verl": _VERL,
    "dr_grpo@verl": replace(_VERL, **_DR_GRPO),
    "dapo@verl": replace(_VERL, epsilon_high=0.28, delta=10.0),
    "gspo-token@verl": replace(
        _VERL, importance_sampling_level="sequence_token", log_ratio_clip=float("inf"), delta=None, **_GSPO
    ),
    "cispo@verl": replace(_VERL, loss_type="cispo", cispo_range="around_one"),
    "rloo@verl": replace(_VERL, **_RLOO),
    "reinforce++@verl": replace(_VERL, advantage_estimator="reinforce_plus_plus", **_IN_REWARD),
    "reinforce++_baseline@verl": replace(_VERL, advantage_estimator="reinforce_plus_plus_baseline", kl_estimator="k2"),
}


def convention_of(preset: str | Convention, **overrides: Any) -> Convention:
    """A preset, or a convention, some of its settings replaced. Raises UserError for a name unheard of, and for what a
    setting cannot be."""
    if not isinstance(preset, Convention) and str(preset) not in PRESETS:
        raise UserError(f"no preset is called {and_nearest(str(preset), PRESETS)}; there are {', '.join(PRESETS)}")
    for name in overrides:
        if name not in _HINTS:
            raise UserError(f"a policy gradient has no setting {and_nearest(name, _HINTS)}; it has {', '.join(_HINTS)}")
    return replace(preset if isinstance(preset, Convention) else PRESETS[preset], **overrides)


@dataclass(frozen=True)
class GRPO:
    """Policy-gradient settings, by the names of the field. Those that may be None replace the preset's if given."""

    preset: str = DEFAULT_PRESET
    """Method and whose convention of it, as in grpo@trl; see `PRESETS`."""
    num_generations: int = 8
    """G: questions sampled for each image; the advantage compares them with each other, REINFORCE++'s with all (it may
    be 1 there)."""
    num_iterations: int = 1
    """Updates made with each batch of questions."""
    max_resamples: int = 0
    """Dynamic sampling: further batches of images asked about, at most, to replace groups without signal."""
    beta: float | None = None
    """Weight of the KL divergence to the auditor before training (default preset: 0.03)."""
    kl_estimator: KLEstimator | None = None
    """k2's gradient is that of the reverse KL; k3's is that of the forward KL (k2)."""
    use_bias_correction_kl: bool | None = None
    """Whether the KL in the loss is multiplied by the probability ratio (False; TRL's default is True since 1.10)."""
    kl_in_reward: bool | None = None
    """Whether it is subtracted from the reward instead of added to the loss (False)."""
    epsilon: float | None = None
    """Clip range of the probability ratio, below one (0.2)."""
    epsilon_high: float | None = None
    """Clip range of the probability ratio, above one (as epsilon); of CISPO as TRL has it the largest weight (5)."""
    delta: float | None = None
    """Largest probability ratio where the advantage is negative (inf); as in TRL, also where it is positive, so give
    more than 1 + epsilon-high."""
    scale_rewards: ScaleRewards | None = None
    """Which standard deviation advantages are divided by (none)."""
    loss_type: LossType | None = None
    """How token losses are averaged (dr_grpo)."""
    soft_punish_cache: int | None = None
    """Tokens before the longest question over which its penalty grows to 1 (0: no penalty)."""
    importance_sampling_mode: SamplingCorrection | None = None
    """Weights for the drift between the sampler's log-probabilities and the update's (none)."""
    temperature: float = 1.0
    """Sampling temperature of the auditor; log-probabilities are taken at the same one."""
    learning_rate: float = 1e-3
    """Peak of the learning rate (AdamW); linear warm-up over a tenth of the steps, then cosine to a
    twentieth: a higher rate at the end costs success."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm."""

    def __post_init__(self) -> None:
        at_least_one(self, "num_generations", "num_iterations")
        for name in ("num_generations", "num_iterations", "max_resamples"):
            if not isinstance(getattr(self, name), int | np.integer):
                raise UserError(f"{name.replace('_', '-')} is {getattr(self, name)}: it must be a whole number")
        for name in ("temperature", "learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if not value > 0 or (value == float("inf") and name != "max_grad_norm"):  # nan, too; inf does not clip
                raise UserError(f"{name.replace('_', '-')} is {value}: it must be above 0, and finite")
        if self.max_resamples < 0:
            raise UserError(f"max-resamples is {self.max_resamples}: it must be 0 (no dynamic sampling) or more")
        # Dynamic sampling looks for groups whose rewards differ.
        if self.num_generations < max(self.convention().smallest_group, 2 if self.max_resamples else 1):
            raise UserError("num-generations is 1: a group needs 2 questions or more to compare")

    def convention(self) -> Convention:
        """The preset with what was given in its place."""
        known = vars(PRESETS[DEFAULT_PRESET])
        given = {name: value for name, value in vars(self).items() if name in known and value is not None}
        return convention_of(self.preset, **given)
