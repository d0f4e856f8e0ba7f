"""Makes tunix.npz: losses and gradients of tunix's own loss code, against which `policy_gradient_loss` is tested.

    pip install "google-tunix==0.1.7" "jax==0.10.2" && python make_tunix.py

Made with these versions, on a CPU, in float32: advantages by its registered estimators, the loss by `grpo_loss_fn`,
settings by its config classes. Only `compute_per_token_logps` is replaced, by given log-probabilities; the weights for
the sampler's drift, which its learner makes inside a long method, are written out as there: min(ratio, 2) of tokens.
tunix knows no missing rewards. The format is that of make_trl.py.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tunix.rl import algo_core, common, function_registry
from tunix.rl.grpo.dapo_learner import DAPOConfig
from tunix.rl.grpo.drgrpo_learner import DrGRPOConfig
from tunix.rl.grpo.grpo_learner import GRPOConfig

ROWS, LENGTH = 16, 5
GRADED = (0.9, 0.2, 0.4, 0.6, 1.0, 0.0, 0.0, 0.3, 0.7, 0.1, 0.8, 0.8, 0.2, 0.5, 1.0, 0.1)
FLAT = (1.0,) * 4 + GRADED[4:]
TUNIX = {  # what a preset is in tunix's words: config, estimator, attributes that the config class does not have
    "grpo@tunix": (GRPOConfig, "grpo", {}),
    "dr_grpo@tunix": (DrGRPOConfig, "drgrpo", {}),
    "dapo@tunix": (DAPOConfig, "grpo", {}),
    "gspo-token@tunix": (GRPOConfig, "grpo", dict(loss_algo="gspo-token", epsilon=3e-4, epsilon_high=4e-4, beta=0.0)),
    "rloo@tunix": (GRPOConfig, "rloo", {}),
}


def example(shift, spread=0.3, empty=()):
    rng = np.random.default_rng(0)
    logps = -rng.exponential(1.5, (ROWS, LENGTH))
    old, ref = (logps + rng.normal(0, spread, logps.shape) for _ in range(2))
    old += shift * (np.array(GRADED)[:, None] - 0.5)
    sampling = old + rng.normal(0, 0.5, logps.shape)
    lengths = np.where(np.isin(np.arange(ROWS), empty), 0, np.arange(ROWS) % LENGTH + 1)
    mask = np.arange(LENGTH) < lengths[:, None]
    return [x.astype(np.float32) for x in (logps, old, ref, sampling, mask)]


def loss_of(preset, arrays, rewards, group_size, sampler, settings):
    make, estimator, attributes = TUNIX[preset]
    config = make(num_generations=group_size)
    for name, value in {"temperature": 1.0, **attributes, **settings}.items():
        setattr(config, name, value)
    logps, old, ref, sampling, mask = (jnp.asarray(x) for x in arrays)
    rewards = np.array(rewards, np.float32)
    weights = jnp.minimum(jnp.exp(old - sampling), 2.0) if sampler else None
    advantages = function_registry.get_advantage_estimator(estimator)(rewards, group_size)
    example = SimpleNamespace(
        prompt_ids=None, completion_ids=None, completion_mask=mask, old_per_token_logps=old, ref_per_token_logps=ref,
        advantages=advantages, sampler_is_weights=weights,
    )  # fmt: skip

    def value(logps):
        common.compute_per_token_logps = lambda *_, **__: (logps, jnp.zeros((*logps.shape, 2)))
        return algo_core.grpo_loss_fn(nnx.Module(), example, config, 0, 1)[0]

    return jax.value_and_grad(value)(logps)


def shift_of(preset):
    """How far the policy moved towards what was rewarded, so that the loss is no small difference of large terms."""
    return 0.4 if preset.startswith("gspo") else -0.8


def cases():
    for preset in TUNIX:
        yield "unequal lengths", preset, {}
        yield "empty rows", preset, {"empty": (5, 9)}
        yield "a group without signal", preset, {"rewards": FLAT}
        yield "groups of two", preset, {"group_size": 2}
        yield "far outside the clip", preset, {"spread": 3.0}
        yield "ratios beyond e^20", preset, {"spread": 25.0}
    yield "dual clip", "grpo@tunix", {"spread": 3.0, "settings": {"epsilon_c": 3.0}}
    yield "k2", "grpo@tunix", {"settings": {"kl_loss_mode": "mse_kl"}}
    yield "k3", "dr_grpo@tunix", {"settings": {"kl_loss_mode": "low_var_kl", "beta": 0.1}}
    yield "sampler's drift", "grpo@tunix", {"sampler": True}


def main():
    ours = {"epsilon_c": "delta", "kl_loss_mode": "kl_estimator", "mse_kl": "k2", "low_var_kl": "k3"}
    out = {}
    for name, preset, case in cases():
        arrays = example(shift_of(preset), case.get("spread", 0.3), case.get("empty", ()))
        rewards, group_size = case.get("rewards", GRADED), case.get("group_size", 4)
        settings, sampler = case.get("settings", {}), case.get("sampler", False)
        loss, gradient = loss_of(preset, arrays, rewards, group_size, sampler, settings)
        overrides = {ours.get(key, key): ours.get(value, value) for key, value in settings.items()}
        setting = {"preset": preset, "group_size": group_size, "accumulation": 1, "overrides": overrides}
        key = f"{preset}, {name}"
        out[f"{key}/arrays"], out[f"{key}/loss"] = np.stack([*arrays, np.asarray(gradient)]), np.float64(loss)
        out[f"{key}/rewards"] = np.array(rewards, np.float32)
        out[f"{key}/setting"] = np.array(json.dumps(setting | {"sampler": sampler}))
        print(f"{key}: {loss:.6f}")
    np.savez_compressed(Path(__file__).with_name("tunix.npz"), **out)


if __name__ == "__main__":
    main()
