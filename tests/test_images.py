"""images.py: every mode, rotation and kind of damage an image file may come with."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from auditdm_jax.images import BadImage, decode_rgb, to_rgb


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def colors(height: int = 8, width: int = 8) -> Image.Image:
    """An image whose left half is red and whose right half is blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


def reason(source: object, **options: int) -> str:
    with pytest.raises(BadImage) as bad:
        decode_rgb(source, 8, **options)
    return str(bad.value)


def test_rgb_keeps_its_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    result = decode_rgb(encoded(Image.fromarray(pixels)), 8)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, pixels)


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_known_formats(kind):
    result = decode_rgb(encoded(colors(16, 16), kind), 8)
    np.testing.assert_allclose(result[4, [0, 7]], [[255, 0, 0], [0, 0, 255]], atol=4)


def test_other_sizes_are_resized_as_pillow_does():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 30, 3), np.uint8))
    np.testing.assert_array_equal(
        decode_rgb(encoded(image), 16), np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
    )


def test_cmyk_jpeg():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # magenta and yellow ink: red
    assert Image.open(io.BytesIO(encoded(image, "JPEG"))).mode == "CMYK"
    np.testing.assert_allclose(decode_rgb(encoded(image, "JPEG"), 8)[4, 4], [255, 0, 0], atol=3)


def test_16_bit_grey_is_scaled_and_not_clipped():
    grey = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    data = encoded(Image.fromarray(grey))
    assert Image.open(io.BytesIO(data)).mode == "I;16"
    result = decode_rgb(data, 8)
    np.testing.assert_array_equal(result[..., 0], np.rint(grey / 257))
    np.testing.assert_array_equal(result[..., 0], result[..., 2])


@pytest.mark.parametrize(("top", "expected"), [(1.0, 255), (200.0, 200)])
def test_float_grey(top, expected):
    grey = np.array([[0.0, top], [np.nan, top]], np.float32)
    result = np.asarray(to_rgb(Image.fromarray(grey)))
    np.testing.assert_array_equal(result[..., 1], [[0, expected], [0, expected]])


def test_32_bit_grey():
    result = np.asarray(to_rgb(Image.fromarray(np.array([[0, 257, 65535, -5]], np.int32))))
    np.testing.assert_array_equal(result[0, :, 0], [0, 1, 255, 0])


def test_palette_with_transparency_is_laid_on_white():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(1, (0, 0, 4, 8))
    result = decode_rgb(encoded(image, transparency=0), 8)
    np.testing.assert_array_equal(result[0, 0], [255, 0, 0])
    np.testing.assert_array_equal(result[0, 7], [255, 255, 255])


def test_alpha_blends_with_white():
    np.testing.assert_allclose(
        decode_rgb(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 128))), 8)[0, 0], [127] * 3, atol=1
    )
    np.testing.assert_array_equal(decode_rgb(encoded(Image.new("LA", (8, 8), (0, 0))), 8)[0, 0], [255] * 3)


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera stood on its side: turn by 90 degrees clockwise
    result = decode_rgb(encoded(colors(), exif=exif), 8)
    np.testing.assert_array_equal(result[0, 0], [255, 0, 0])  # left became top
    np.testing.assert_array_equal(result[0, 7], [255, 0, 0])
    np.testing.assert_array_equal(result[7, 0], [0, 0, 255])


def test_grey_and_bilevel():
    np.testing.assert_array_equal(decode_rgb(encoded(Image.new("1", (8, 8), 1)), 8)[3, 3], [255] * 3)
    np.testing.assert_array_equal(decode_rgb(encoded(Image.new("L", (8, 8), 9)), 8)[3, 3], [9] * 3)


def test_truncated_and_corrupt():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for kind in ("PNG", "JPEG", "WEBP"):
        data = encoded(noise, kind)
        assert reason(data[: len(data) // 2]) == "corrupt or truncated", kind
    png = bytearray(encoded(noise))
    png[len(png) // 2] ^= 0xFF
    assert reason(bytes(png)) == "corrupt or truncated"


@pytest.mark.parametrize("data", [b"\x00", b"hello, world", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image(data):
    assert reason(data) == "unknown format"


def bomb(width: int, height: int) -> bytes:
    """A valid PNG header of any size over a few bytes of data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_000, 11_000, 60_000])
def test_enormous_images_are_refused_by_their_header(side, monkeypatch):
    """Below Pillow's own limits, above its warning, above its error."""
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    assert reason(bomb(side, side)) == "too large"


def test_the_limit_is_on_pixels():
    data = encoded(colors(8, 12))
    assert reason(data, max_pixels=95) == "too large"
    assert decode_rgb(data, 8, max_pixels=96).shape == (8, 8, 3)


def test_missing_files(tmp_path):
    assert reason(tmp_path / "gone.png") == "unreadable file"
    assert reason(tmp_path) == "unreadable file"
