"""policy_gradient.py against TRL's and tunix's own code: losses and gradients recorded by the scripts in golden/."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auditdm_jax.policy_gradient import PRESETS, policy_gradient_loss

GOLDEN = Path(__file__).parent / "golden"
FILES = {library: np.load(GOLDEN / f"{library}.npz", allow_pickle=False) for library in ("trl", "tunix")}
CASES = [
    pytest.param(library, key.removesuffix("/loss"), id=key.removesuffix("/loss"))
    for library, file in FILES.items()
    for key in file
    if key.endswith("/loss")
]
RENEW = "if the library changed its mind, run tests/golden/make_{}.py again and say so in the changelog"


def recorded(library, case):
    """Its arrays, and a function of the log-probabilities that calls the door as the library was called."""
    file = FILES[library]
    logps, old, ref, sampling, mask, gradient = file[f"{case}/arrays"]
    rewards, setting = jnp.asarray(file[f"{case}/rewards"]), json.loads(str(file[f"{case}/setting"]))

    def loss_of(logps, rows=slice(None), **more):
        arrays = [jnp.asarray(x[rows]) for x in (old, ref, mask)]
        sampler = jnp.asarray(sampling[rows]) if setting["sampler"] else None
        overrides = setting["overrides"] | more
        arguments = (*arrays, rewards[rows], setting["group_size"], setting["preset"])
        return policy_gradient_loss(logps[rows], *arguments, sampling_logps=sampler, **overrides)[0]

    return jnp.asarray(logps), mask, float(file[f"{case}/loss"]), gradient, setting, loss_of


@pytest.mark.parametrize(("library", "case"), CASES)
def test_loss_and_gradient_are_the_librarys(library, case):
    logps, mask, loss, gradient, setting, loss_of = recorded(library, case)
    if setting["accumulation"] > 1 and setting["preset"] == "bnpo@trl":
        parts = np.split(np.arange(len(logps)), setting["accumulation"])  # its mean is over a micro-batch's own tokens

        def whole(logps):
            return sum(loss_of(logps, part) for part in parts) / len(parts)

        assert abs(whole(logps) / loss_of(logps) - 1) > 1e-3
    else:
        whole = loss_of
    ours, slope = jax.value_and_grad(whole)(logps)
    np.testing.assert_allclose(ours, loss, rtol=1e-6, err_msg=RENEW.format(library))
    np.testing.assert_allclose(
        slope, gradient, rtol=1e-5, atol=1e-7 * abs(gradient).max(), err_msg=RENEW.format(library)
    )
    assert (gradient[mask == 0] == 0).all()


@pytest.mark.parametrize("preset", ["dapo@trl", "cispo@trl"])
def test_micro_batches_that_know_the_whole_batchs_tokens_add_up_to_it(preset):
    logps, mask, loss, _, setting, loss_of = recorded("trl", f"{preset}, four micro-batches")
    parts = np.split(np.arange(len(logps)), setting["accumulation"])
    total = sum(loss_of(logps, part, num_items_in_batch=mask.sum()) for part in parts)
    np.testing.assert_allclose(total, loss, rtol=1e-6)


def test_temperature_divides_the_logits_as_in_trl():
    """What TRL calls log-probabilities are those of the tempered distribution, as in our sampler and our update."""
    file = FILES["trl"]
    case = "grpo@trl, temperature"
    logps, _, _, _, mask, _ = file[f"{case}/arrays"]
    setting = json.loads(str(file[f"{case}/setting"]))
    tempered = jax.nn.log_softmax(file[f"{case}/logits"] / setting["temperature"])
    ours = jnp.take_along_axis(tempered, jnp.asarray(file[f"{case}/ids"])[..., None], axis=-1)[..., 0]
    assert setting["temperature"] != 1
    np.testing.assert_allclose(ours[mask > 0], logps[mask > 0], rtol=1e-5)


def test_every_preset_of_the_libraries_is_recorded():
    seen = {json.loads(str(file[key]))["preset"] for file in FILES.values() for key in file if key.endswith("/setting")}
    assert seen == {name for name in PRESETS if name.endswith(("@trl", "@tunix"))}
