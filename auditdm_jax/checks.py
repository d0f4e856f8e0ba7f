"""[jit] Faults of a counterfactual image: it shows nothing new, it slipped, or it is no picture any more.

A target that fails on such an image has failed for the renderer's sake: it earns nothing and is counted. All checks
work on pictures of 64x64 pixels in [0, 1], so that their thresholds mean the same for images of any size.

Departure from the paper, which filters its generated data by the verifier alone.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

SIDE = 64
PATCH = 8
# Of the patch that changed most, its mean change: an autoencoder's noise stays below, a small dot stands above.
MIN_CHANGE = 0.03
# Scales that are tried, and the farthest shift, in pixels of 64: beyond it, one thing that moved looks like a slip.
SCALES = (0.75, 0.82, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.3)
MAX_SHIFT = 8
# By how much a slip must explain the image better than no slip, in correlation.
MIN_GAIN = 0.2
MIN_CONTRAST = 0.02
"""Standard deviation below which an image is blank."""
MIN_SELF_SIMILARITY = 0.15
"""Largest correlation with itself, shifted by up to `MAX_SHIFT`, below which it is noise."""


@flax.struct.dataclass
class Faults:
    """Of each counterfactual image; the first that holds, in this order, is the one that counts.

    collapsed: blank or noise. no_effect: hardly a pixel changed. drifted: an edit moved, cropped or zoomed the whole
    picture.
    """

    collapsed: Bool[Array, "B"]
    no_effect: Bool[Array, "B"]
    drifted: Bool[Array, "B"]


@jax.jit
def faults_of_edits(before: UInt8[Array, "B H W 3"], after: UInt8[Array, "B H W 3"]) -> Faults:
    """Faults of edited images beside the images that they were made from."""
    old, new = small(before), small(after)
    is_collapsed = collapsed(grey(new))
    unchanged = ~is_collapsed & (largest_change(old, new) < MIN_CHANGE)
    gain, _, _ = registration(grey(old), grey(new))
    return Faults(is_collapsed, unchanged, ~is_collapsed & ~unchanged & (gain > MIN_GAIN))


@jax.jit
def faults_of_generations(after: UInt8[Array, "B H W 3"]) -> Faults:
    """Faults of images made from a caption alone: there is nothing that they should resemble."""
    is_collapsed = collapsed(grey(small(after)))
    none = jnp.zeros_like(is_collapsed)
    return Faults(is_collapsed, none, none)


def small(images: UInt8[Array, "B H W 3"]) -> Float[Array, "B S S 3"]:
    """In [0, 1], resampled to 64x64."""
    return jax.image.resize(images.astype(jnp.float32) / 255, (len(images), SIDE, SIDE, 3), "linear")


def grey(images: Float[Array, "B S S 3"]) -> Float[Array, "B S S"]:
    """Luma (ITU-R BT.601)."""
    return images @ jnp.array([0.299, 0.587, 0.114])


def collapsed(images: Float[Array, "B S S"]) -> Bool[Array, "B"]:
    """Blank (one tone), or noise (it resembles itself at no shift: a texture of rain does)."""
    spectrum = jnp.abs(jnp.fft.rfft2(_standardised(images))) ** 2
    alike = _near(jnp.fft.irfft2(spectrum, (SIDE, SIDE))) / SIDE**2
    alike = alike.at[:, MAX_SHIFT, MAX_SHIFT].set(0.0)
    return (images.std((1, 2)) < MIN_CONTRAST) | (alike.max((1, 2)) < MIN_SELF_SIMILARITY)


def largest_change(old: Float[Array, "B S S 3"], new: Float[Array, "B S S 3"]) -> Float[Array, "B"]:
    """Mean absolute change, in [0, 1], of the 8x8 patch and color channel that changed most."""
    side = SIDE // PATCH
    patches = jnp.abs(new - old).reshape(-1, side, PATCH, side, PATCH, 3).mean((2, 4))
    return patches.max((1, 2, 3))


def registration(
    old: Float[Array, "B S S"], new: Float[Array, "B S S"]
) -> tuple[Float[Array, "B"], Float[Array, "B 2"], Float[Array, "B"]]:
    """How the old picture is best laid over the new one: (gain, shift [B, 2] in pixels, scale).

    Over all shifts of at most `MAX_SHIFT` and all `SCALES`, the correlation coefficient of the pictures (circular, by
    Fourier transform); gain is by how much the best exceeds that of the pictures as they lie.
    """
    spectrum = jnp.fft.rfft2(_standardised(new))

    def correlations(scale: Float[Array, ""]) -> Float[Array, "B K K"]:
        scaled = jax.vmap(lambda image: _scaled(image, scale))(old)
        return _near(jnp.fft.irfft2(spectrum * jnp.conj(jnp.fft.rfft2(_standardised(scaled))), (SIDE, SIDE))) / SIDE**2

    maps = jnp.stack([correlations(jnp.float32(scale)) for scale in SCALES], 1)
    flat = maps.reshape(len(maps), -1)
    best = flat.argmax(-1)
    number, row, column = jnp.unravel_index(best, maps.shape[1:])
    as_it_lies = maps[:, SCALES.index(1.0), MAX_SHIFT, MAX_SHIFT]
    shift = jnp.stack([row, column], -1).astype(jnp.float32) - MAX_SHIFT
    return flat.max(-1) - as_it_lies, shift, jnp.asarray(SCALES)[number]


def _near(maps: Float[Array, "B S S"]) -> Float[Array, "B K K"]:
    """Of values by circular shift, those at shifts of -`MAX_SHIFT` to `MAX_SHIFT`."""
    wanted = jnp.arange(-MAX_SHIFT, MAX_SHIFT + 1)
    return maps[:, wanted][:, :, wanted]


def _standardised(images: Float[Array, "B S S"]) -> Float[Array, "B S S"]:
    return (images - images.mean((1, 2), keepdims=True)) / (images.std((1, 2), keepdims=True) + 1e-6)


def _scaled(image: Float[Array, "S S"], scale: Float[Array, ""]) -> Float[Array, "S S"]:
    """The picture enlarged about its centre; what comes in from outside repeats the border."""
    middle = (SIDE - 1) / 2
    source = jnp.clip((jnp.arange(SIDE) - middle) / scale + middle, 0, SIDE - 1)
    rows, columns = jnp.meshgrid(source, source, indexing="ij")
    return jax.scipy.ndimage.map_coordinates(image, [rows, columns], order=1, mode="nearest")
