"""JAX arrays as torch tensors and back: the same numbers, and the same memory where that is promised."""

import gc

import hypothesis.extra.numpy as npst
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auditdm_jax import bridge
from auditdm_jax.bridge import to_jax, to_torch

DTYPES = ("uint8", "float32", "bfloat16", "int32", "bool")
SHAPES = ((4, 64, 64, 3), (1, 1, 5, 1), (7,), (), (2, 1, 3), (0, 3))


def numbers(shape, dtype: str):
    values = np.random.default_rng(0).integers(0, 200, shape)
    return jnp.asarray(values % 2 if dtype == "bool" else values, dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_there_and_back_is_the_same_memory(shape, dtype):
    array = numbers(shape, dtype)
    tensor = to_torch(array)
    assert str(tensor.dtype) == f"torch.{dtype}"
    assert tuple(tensor.shape) == shape
    np.testing.assert_array_equal(tensor.float().numpy(), np.asarray(array, np.float32))
    again = to_jax(tensor)
    assert (again.dtype, again.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(np.asarray(again), np.asarray(array))
    if array.size:
        assert array.unsafe_buffer_pointer() == tensor.data_ptr() == again.unsafe_buffer_pointer()


def whole(dtype=torch.float32) -> torch.Tensor:
    return torch.arange(2 * 3 * 4 * 16, dtype=dtype).reshape(2, 3, 4, 16)


@pytest.mark.parametrize(
    ("name", "view", "shared"),
    [
        ("whole", lambda t: t, True),
        ("channels last", lambda t: t.to(memory_format=torch.channels_last), True),
        ("transposed", lambda t: t.permute(0, 2, 3, 1), True),
        ("size-1 axis from a slice", lambda t: t[:1], True),
        ("size-1 axis of any stride", lambda t: t[:1].as_strided((1, 3, 4, 16), (7, 64, 16, 1)), True),
        ("every other", lambda t: t[:, :, ::2], False),
        ("part of each row", lambda t: t[..., :5], False),
        ("expanded", lambda t: t[:, :, :, :1].expand(2, 3, 4, 16), False),
        ("flipped", lambda t: t.flip(0), None),
        ("odd start", lambda t: t.flatten()[1:], False),
        ("with a gradient", lambda t: t.clone().requires_grad_(), None),
    ],
)
def test_every_layout_arrives_with_its_numbers(name, view, shared):
    tensor = view(whole())
    array = to_jax(tensor)
    np.testing.assert_array_equal(np.asarray(array), tensor.detach().numpy())
    np.testing.assert_array_equal(np.asarray(jax.jit(lambda x: x + 1)(array)), tensor.detach().numpy() + 1)
    if shared is not None:
        # Where the memory begins; channels-last and transposed arrays are read in their own order.
        assert (array.unsafe_buffer_pointer() == tensor.data_ptr()) == shared


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_permuted_slice_keeps_its_numbers(data):
    shape = data.draw(npst.array_shapes(min_dims=1, max_dims=4, max_side=5))
    tensor = torch.arange(int(np.prod(shape)), dtype=torch.int32).reshape(shape)
    tensor = tensor.permute(*data.draw(st.permutations(range(len(shape)))))
    for axis, size in enumerate(tensor.shape):
        start, step = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, 3))
        tensor = tensor[(slice(None),) * axis + (slice(start, None, step),)]
    np.testing.assert_array_equal(np.asarray(to_jax(tensor)), tensor.numpy())


def test_64_bit_numbers_become_32_bit():
    for dtype, ours in ((torch.int64, jnp.int32), (torch.float64, jnp.float32)):
        array = to_jax(whole(dtype))
        assert array.dtype == ours
        np.testing.assert_array_equal(np.asarray(array), whole(dtype).numpy())


def test_memory_outlives_either_owner():
    array = jnp.arange(100_000, dtype=jnp.float32) * 2
    tensor = to_torch(array)
    del array
    gc.collect()
    jnp.ones(100_000).block_until_ready()  # would land in freed memory
    assert tensor[1:4].tolist() == [2, 4, 6]
    back = to_jax(tensor)
    del tensor
    gc.collect()
    assert float(back[99_999]) == 199_998


def test_a_donated_array_is_refused():
    array = jnp.ones(8)
    array.delete()
    with pytest.raises(ValueError, match="donated or deleted"):
        to_torch(array)


class Elsewhere:
    """An array on a device that torch does not see."""

    def __init__(self, array):
        self.array, self.platform = array, "gpu"

    def is_deleted(self):
        return False

    def devices(self):
        return {self}

    def __array__(self, *args, **kwargs):
        return np.asarray(self.array)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees the GPU")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cpu_only_torch_gets_a_copy_and_says_so_once(dtype):
    bridge._tell_of_copies.cache_clear()
    array = numbers((2, 3), dtype)
    with pytest.warns(UserWarning, match="copied through the host"):
        tensor = to_torch(Elsewhere(array))
    assert str(tensor.dtype) == f"torch.{dtype}"
    assert tensor.data_ptr() != array.unsafe_buffer_pointer()
    np.testing.assert_array_equal(tensor.float().numpy(), np.asarray(array, np.float32))
