"""Arrays that the tests of the policy gradient share."""

import jax.numpy as jnp
import numpy as np

NAN = float("nan")
MASK = jnp.array([[1, 1, 1], [1, 0, 0]], bool)


def example(seed, group_size=4, rows=12, length=6):
    """A batch with ratios on both sides of the clip, unequal lengths, an empty row, a group without signal."""
    rng = np.random.default_rng(seed)
    logps = -rng.exponential(1.5, (rows, length))
    old_logps = logps + rng.normal(0, 0.4, logps.shape)
    ref_logps = logps + rng.normal(0, 0.5, logps.shape)
    lengths = rng.integers(1, length + 1, rows)
    lengths[rng.integers(rows)] = 0
    rewards = rng.choice([0.0, 0.5, 1.0], rows)
    rewards[:group_size] = 0.1
    mask = np.arange(length) < lengths[:, None]
    return *(x.astype(np.float32) for x in (logps, old_logps, ref_logps)), mask, rewards.astype(np.float32)
