"""Arrays between JAX and PyTorch by DLPack: the same memory under two names wherever that is possible.

Where memory is shared, and where it is copied:

    to_torch   shared   arrays on a CPU, and on a GPU that torch sees too
               copied   arrays on another device (a TPU, or a GPU beside a CPU-only torch): through the host
    to_jax     shared   tensors without gaps in memory, a transposed one included (it keeps its order of axes in memory)
               copied   strided or expanded tensors; 64-bit numbers, which become 32-bit as all of JAX's do; on a CPU,
                        tensors that do not begin where JAX can read fast (64 bytes), on a GPU those that do not begin
                        where its kernels may read at all (16 bytes); tensors on a device JAX lacks

Shared memory has two owners: it is freed when both have let go. JAX takes arrays for constant, so nothing may write
into a shared tensor, and an array whose buffer was donated to a compiled function cannot be shared any more.

Streams: the exporting side is asked for the memory as seen from the importing side's current stream, so that pending
work of one is done before the other reads; neither side needs to be synchronised by hand. But keep an array until torch
has done its work on it: once it is let go of, JAX uses the memory again without asking torch's stream.

One GPU, two allocators: JAX would take three quarters of the card at its first use. The commands of this project set
XLA_PYTHON_CLIENT_PREALLOCATE=false before they import JAX (`cli.py`), so that each takes what it needs; whoever imports
the modules directly sets it, or XLA_PYTHON_CLIENT_MEM_FRACTION, before importing JAX.
"""

import warnings
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array

_GPU_ALIGNMENT = 16
"""Bytes; compiled functions refuse a buffer that begins elsewhere."""


def to_torch(array: Array) -> torch.Tensor:
    """A tensor of the same shape, dtype and device. Do not write into it: JAX's array is the same memory.

    Raises ValueError for an array that is spread over several devices, or whose buffer is gone.
    """
    if array.is_deleted():
        raise ValueError("the array's buffer was donated or deleted; convert it before the step that takes it")
    if len(array.devices()) > 1:
        raise ValueError(f"the array lies on {len(array.devices())} devices; gather it on one before converting it")
    platform = next(iter(array.devices())).platform
    if platform == "cpu" or (platform == "gpu" and torch.cuda.is_available()):
        return torch.from_dlpack(array)
    _tell_of_copies(f"JAX works on a {platform.upper()} that this torch does not see")
    return _from_host(np.asarray(array))


def to_jax(tensor: torch.Tensor) -> Array:
    """An array of the same shape and dtype (64-bit numbers become 32-bit), on the same device.

    Write no more into the tensor: the array may be the same memory. Gradients do not pass.
    """
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.device.type == "cuda" and jax.default_backend() != "gpu":
        _tell_of_copies("torch works on a GPU that this JAX does not see")
        tensor = tensor.cpu()
    if not _without_gaps(tensor):
        tensor = tensor.contiguous()
    if tensor.is_cuda and tensor.data_ptr() % _GPU_ALIGNMENT:
        tensor = tensor.clone()
    return jnp.from_dlpack(tensor)


def _without_gaps(tensor: torch.Tensor) -> bool:
    """Whether the elements fill their memory, in whatever order of axes. The stride of a size-1 axis means nothing."""
    axes = sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1)
    expected = 1
    for stride, size in axes:
        if stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True


def _from_host(array: np.ndarray) -> torch.Tensor:
    """numpy has no bfloat16 of its own: the bits travel as integers."""
    if array.dtype == jnp.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


@lru_cache(maxsize=4)
def _tell_of_copies(why: str) -> None:
    warnings.warn(
        f"{why}: images are copied through the host; install both for the same device to share memory", stacklevel=3
    )
