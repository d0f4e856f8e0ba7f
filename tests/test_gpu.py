"""What only a GPU can show, beside the CPU: `JAX_PLATFORMS=cuda,cpu pytest -m gpu`, with one that JAX and torch see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from auditdm_jax import training
from auditdm_jax.bridge import to_jax, to_torch
from auditdm_jax.config import TrainConfig
from auditdm_jax.counterfactuals import Renderer
from auditdm_jax.evals import Answerer
from auditdm_jax.scenes.dataset import balanced_set, scenes_of
from auditdm_jax.scenes.editor_exam import examine
from auditdm_jax.scenes.edits import sample_edit
from auditdm_jax.scenes.zoo_paths import ZOO, load_model
from auditdm_jax.step import make_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and jax.default_backend() == "gpu"), reason="needs one GPU for both"
    ),
]


@pytest.fixture
def cpu():
    """JAX's CPU, beside the GPU. `with jax.default_device(cpu)` computes there."""
    try:
        return jax.devices("cpu")[0]
    except RuntimeError:
        pytest.skip("JAX_PLATFORMS leaves out the CPU")


@pytest.mark.parametrize("shape", [(4, 64, 64, 3), (1, 64, 64, 3), (1, 1, 5, 1)])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "bfloat16"])
def test_there_and_back_is_the_same_memory(shape, dtype):
    array = jnp.asarray(np.random.default_rng(0).integers(0, 200, shape), dtype)
    tensor = to_torch(array)
    assert tensor.is_cuda
    assert str(tensor.dtype) == f"torch.{dtype}"
    assert tuple(tensor.shape) == shape
    np.testing.assert_array_equal(tensor.float().cpu().numpy(), np.asarray(array, np.float32))
    again = to_jax(tensor)
    assert (again.dtype, again.shape, again.devices()) == (array.dtype, array.shape, array.devices())
    np.testing.assert_array_equal(np.asarray(again), np.asarray(array))
    assert array.unsafe_buffer_pointer() == tensor.data_ptr() == again.unsafe_buffer_pointer()


@pytest.mark.parametrize(
    ("name", "view", "shared"),
    [
        ("channels last", lambda t: t.to(memory_format=torch.channels_last), True),
        ("size-1 axis of any stride", lambda t: t[:1].as_strided((1, 3, 4, 16), (7, 64, 16, 1)), True),
        ("every other", lambda t: t[:, :, ::2], False),
        ("part of each row", lambda t: t[..., :5], False),
        ("expanded", lambda t: t[:, :, :, :1].expand(2, 3, 4, 16), False),
        ("a beginning between 16 bytes", lambda t: t.flatten()[1:], False),
    ],
)
def test_every_layout_arrives_with_its_numbers(name, view, shared):
    tensor = view(torch.arange(384.0, device="cuda").reshape(2, 3, 4, 16))
    array = to_jax(tensor)
    np.testing.assert_array_equal(np.asarray(jax.jit(lambda x: x + 1)(array)), tensor.cpu().numpy() + 1)
    assert (array.unsafe_buffer_pointer() == tensor.data_ptr()) == shared


@jax.jit
def busy():
    """float32 [2048, 2048] of ones that take a while, and are still being computed when this returns."""
    return jax.lax.fori_loop(0, 200, lambda _, ones: ones @ ones / 2048, jnp.ones((2048, 2048)))


def test_streams_wait_for_each_other():
    array = busy()
    with torch.cuda.stream(torch.cuda.Stream()):
        tensor = to_torch(array)
        for _ in range(50):
            tensor = tensor @ tensor / 2048
        back = to_jax(tensor * 2)
    np.testing.assert_allclose(np.asarray(back), 2.0, rtol=1e-5)


def test_memory_is_kept_until_jax_has_read_it():
    """Torch's allocator would hand it on at once."""
    read = jax.jit(lambda x, ones: (x * ones[0, 0]).min())
    for value in range(5):
        tensor = torch.full((4_000_000,), float(value), device="cuda")
        least = read(to_jax(tensor), busy())
        del tensor
        torch.full((4_000_000,), -1.0, device="cuda")
        assert float(least) == value


def test_an_edit_is_the_cpus_and_stays_on_the_gpu(cpu):
    """In float32; and in bfloat16, in which it works on a GPU by default, as many commands are carried out."""
    scenes, images = scenes_of("test", 0, 16)
    rng = np.random.default_rng(0)
    commands = [sample_edit(scene, rng, "test").command for scene in scenes]
    images = jnp.asarray(images)
    load = lambda **settings: Renderer.load(ZOO / "editor", **settings)  # noqa: E731
    edited = {
        device: load(device=device, dtype="float32").edit(images, commands, range(16)) for device in ("cuda", "cpu")
    }
    assert edited["cuda"].devices() == edited["cpu"].devices() == images.devices()  # they came from the GPU
    difference = np.abs(np.asarray(edited["cuda"]).astype(int) - np.asarray(edited["cpu"]))
    assert (difference.max(-1) > 8).mean() <= 0.02
    assert np.abs(np.asarray(edited["cuda"]).astype(int) - np.asarray(images)).max() > 50  # something was edited
    by_default, strict = (examine(load(**settings), 96) for settings in ({}, {"device": "cpu"}))
    assert abs(by_default.done.mean() - strict.done.mean()) <= 0.05
    assert abs(by_default.present.mean() - strict.present.mean()) <= 0.05


def test_the_targets_answers_are_the_cpus(cpu):
    """Greedy, of fixed questions; a GPU multiplies float32 matrices with fewer digits."""
    examples = balanced_set(256)
    questions = [question.text for question in examples.questions]
    ours = Answerer(load_model("target-s"))(examples.images, questions)
    with jax.default_device(cpu):
        theirs = Answerer(load_model("target-s"))(examples.images, questions)
    assert len(set(ours)) > 10
    assert np.mean([one == other for one, other in zip(ours, theirs, strict=True)]) >= 0.99


def test_a_training_step_is_the_cpus(cpu):
    """Drawn from the same noise, nearly all questions are the same, and so is what becomes of them."""

    def one_step():
        config = TrainConfig()
        players, settings = training.load_players(config), training.step_settings(config)
        state = training.initial_state(config, players, settings.optimizer)
        step = make_step(training.cast_of(players, [config.instruction]), settings)
        batch = next(training.open_source(config, training.input_size(players), "train"))["image"]
        state, metrics, record = step(state, batch)
        here = jnp.zeros(()).devices()
        assert all(leaf.devices() == here for leaf in jax.tree.leaves(state.trained))
        return jax.device_get((metrics, record))

    metrics, record = one_step()
    with jax.default_device(cpu):
        cpu_metrics, cpu_record = one_step()
    same = (record["question_ids"] == cpu_record["question_ids"]).all(-1)
    assert same.mean() >= 0.9
    for name in ("target_id", "consensus_id"):
        assert (record[name] == cpu_record[name])[same].mean() >= 0.98
    for name in ("outcome/claimed", "outcome/agreed", "reward/mean"):
        assert abs(metrics[name] - cpu_metrics[name]) <= 0.06
    np.testing.assert_allclose(metrics["grad_norm"], cpu_metrics["grad_norm"], rtol=0.3)
    # The sampler and the update agree on how likely a token is.
    assert metrics["sampling/drift_mean"] < 0.03
