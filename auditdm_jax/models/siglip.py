"""[jit] SigLIP vision encoder (Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023) as pure
functions.

Only what both families use: patches, learned positions, pre-norm blocks and a last norm. No pooling head, and
no interpolation of positions: images must have the size the checkpoint was made for.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from auditdm_jax.models.layers import Params, dense, layer_norm, random_dense, scan_layers


@dataclass(frozen=True)
class SiglipConfig:
    """Sizes of the encoder. Images are square, `image_size` pixels a side, cut into `patch_size` squares."""

    width: int
    mlp_width: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    norm_eps: float = 1e-6

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


def init_params(key: Array, config: SiglipConfig, dtype: Any = jnp.float32) -> Params:
    """Random parameters for training from nothing."""
    keys = iter(jax.random.split(key, 8))
    depth, width, mlp_width = config.num_layers, config.width, config.mlp_width
    # About as strong as the patches' own features, so that a place is as easy to read as what stands there.
    positions = 0.5 * jax.random.normal(next(keys), (config.grid**2, width))

    def norm(*lead: int) -> Params:
        return {"scale": jnp.ones((*lead, width), dtype), "bias": jnp.zeros((*lead, width), dtype)}

    def linear(fan_in: int, fan_out: int) -> Params:
        return random_dense(next(keys), (depth, fan_in, fan_out), dtype, bias=True)

    return {
        "patch": random_dense(next(keys), (3 * config.patch_size**2, width), dtype, bias=True),
        "position": positions.astype(dtype),
        "layers": {
            "attention_norm": norm(depth),
            "q": linear(width, width),
            "k": linear(width, width),
            "v": linear(width, width),
            "o": linear(width, width),
            "mlp_norm": norm(depth),
            "up": linear(width, mlp_width),
            "down": linear(mlp_width, width),
        },
        "norm": norm(),
    }


def encode(
    params: Params, config: SiglipConfig, pixel_values: Float[Array, "B 3 H W"], *, remat: bool = False
) -> Float[Array, "B I D"]:
    """Features of every patch, row by row, in the dtype of the parameters. Pixels in [-1, 1]."""
    x = dense(params["patch"], _patches(config, pixel_values.astype(params["patch"]["kernel"].dtype)))
    x = x + params["position"]
    heads = (*x.shape[:2], config.num_heads, config.width // config.num_heads)

    def layer(x: Array, p: Params) -> tuple[Array, None]:
        h = layer_norm(p["attention_norm"], x, config.norm_eps)
        q, k, v = (dense(p[name], h).reshape(heads) for name in "qkv")
        scores = jnp.einsum("bqnh,bknh->bnqk", q, k, preferred_element_type=jnp.float32) * heads[-1] ** -0.5
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        x = x + dense(p["o"], jnp.einsum("bnqk,bknh->bqnh", weights, v).reshape(x.shape))
        h = layer_norm(p["mlp_norm"], x, config.norm_eps)
        return x + dense(p["down"], jax.nn.gelu(dense(p["up"], h))), None  # its tanh approximation

    x, _ = scan_layers(layer, x, params["layers"], remat=remat)
    return layer_norm(params["norm"], x, config.norm_eps)


def _patches(config: SiglipConfig, pixel_values: Float[Array, "B 3 H W"]) -> Float[Array, "B I E"]:
    """Each patch flattened to (channel, row, column), the order in which the kernel's rows are stored."""
    grid, side = config.grid, config.patch_size
    # A size that is no multiple of the patch leaves a border which the published convolution does not see
    # either.
    pixel_values = pixel_values[:, :, : grid * side, : grid * side]
    x = pixel_values.reshape(-1, 3, grid, side, grid, side)
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(-1, grid * grid, 3 * side * side)
