"""[host] One encoded image -> RGB pixels of a fixed size, whatever its mode, rotation or honesty.

Image files are untrusted input: only the formats below are opened (never one that runs a program, as
EPS does), and the size is read from the header before anything is decoded.

Departures worth knowing: embedded colour profiles are ignored, as the image processors of the models
ignore them; of an animation the first frame counts; the image is squeezed to a square, as the models
expect, and not cropped.
"""

import io
import os
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_PIXELS = 64_000_000

# `max_pixels` is stricter than this warning of Pillow's, and counts instead of printing.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class BadImage(Exception):
    """An image that cannot be used; the message is the reason it is counted under."""


def decode_rgb(
    source: bytes | str | os.PathLike[str], size: int, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes a file, or the bytes of one, to `[size, size, 3]`, 0 to 255, resized with bicubic filtering.

    Raises BadImage, as `open_rgb` does.
    """
    return np.array(open_rgb(source, max_pixels).resize((size, size), Image.Resampling.BICUBIC))


def open_rgb(source: bytes | str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A file, or the bytes of one, as an upright image in mode "RGB", at its own size.

    The rotation that the camera recorded (EXIF) is applied; transparency is laid on white; 16-bit and
    floating point greys are scaled and not clipped; CMYK is converted.

    Raises BadImage: "too large" (more than `max_pixels` in the header), "unknown format",
    "corrupt or truncated", "unreadable file".
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise BadImage("too large")
            return to_rgb(ImageOps.exif_transpose(image))
    except BadImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImage("too large") from None
    except UnidentifiedImageError:
        raise BadImage("unknown format") from None
    except OSError as error:
        # The system's errors carry a number; those of the decoders do not.
        raise BadImage("unreadable file" if error.errno else "corrupt or truncated") from None
    except Exception:
        # Decoders meet hostile bytes with many types (ValueError, SyntaxError, struct.error, MemoryError).
        raise BadImage("corrupt or truncated") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode "RGB" as a person would see it.

    Plain `convert("RGB")` clips 16-bit greys to white and shows the hidden colours of transparent
    pixels, which are often black.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_grey_bytes(np.asarray(image), image.mode)).convert("RGB")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("RGB")


def _grey_bytes(grey: np.ndarray, mode: str) -> UInt8[np.ndarray, "H W"]:
    """Deep greys scaled to 0..255: integers from 0..65535, floats from 0..1, or 0..255 if any is above 1."""
    values = np.nan_to_num(grey.astype(np.float32))
    if mode == "F":
        scale = 255.0 if values.max(initial=0) <= 1 else 1.0
    else:
        scale = 255.0 / 65535.0
    return np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)
