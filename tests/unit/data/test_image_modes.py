"""Whatever an image is made of, it becomes RGB of its own grey values, and upright."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from donna_ray.data.decode import open_rgb, part_of_white, to_rgb

RAMP = np.tile(np.arange(32) / 31, (32, 1))
"""Grey from black to white, 0 to 1."""
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
DEPTHS = {
    "I;16": (np.uint16, 65535),
    "I;16B": (">u2", 65535),
    "I": (np.int32, 65535),
    "F": (np.float32, 1),
}


def ramp(mode: str) -> Image.Image:
    """The ramp as an image of a mode."""
    if mode in DEPTHS:
        kind, white = DEPTHS[mode]
        return Image.fromarray((RAMP * white).astype(kind))
    grey = Image.fromarray((RAMP * 255).astype(np.uint8))
    if mode == "P with transparency":
        palette = grey.convert("P")
        palette.info["transparency"] = bytes(range(256))
        return palette
    return (grey.convert("RGB") if mode in ("CMYK", "HSV") else grey).convert(mode)


def saved(image: Image.Image, kind: str, **how: Any) -> bytes | None:
    """The image in a file format, None where the format has no such mode."""
    file = io.BytesIO()
    try:
        image.save(file, kind, **how)
    except (OSError, ValueError):
        return None
    return file.getvalue()


MODES = ("1", "L", "LA", "P", "P with transparency", "RGB", "RGBA", "CMYK", "YCbCr", *DEPTHS)
DEEP_AS_8_BIT = ("WEBP", "GIF")  # Pillow clips what these are given


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("mode", MODES)
def test_grey_values_are_kept_and_damage_is_seen(mode: str, kind: str) -> None:
    data = saved(ramp(mode), kind, **({"lossless": True} if kind == "WEBP" else {}))
    if data is None or (mode in DEPTHS and kind in DEEP_AS_8_BIT):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = open_rgb(io.BytesIO(data))
    assert (image.mode, image.size) == ("RGB", (32, 32))
    values = np.asarray(image, np.int32)
    off = np.abs(values - 255 * RAMP[:, :, None])
    assert off.mean() < 8 if mode != "1" else np.minimum(values, 255 - values).mean() < 8
    for end in (0, 10, len(data) // 3, len(data) // 2):
        with pytest.raises(Exception):  # noqa: B017, PT011
            open_rgb(io.BytesIO(data[:end]))


@given(st.integers(0, 65535), st.sampled_from(["I;16", "I;16B", "I"]))
def test_16_bits_are_scaled(value: int, mode: str) -> None:
    assume(mode != "I" or not 0 < value < 256)  # see test_values_out_of_range_are_refused
    image = Image.fromarray(np.full((2, 2), value, DEPTHS[mode][0]))
    assert np.asarray(to_rgb(image)).tolist() == [[[round(value / 257)] * 3] * 2] * 2


def test_16_bits_of_colour_are_scaled() -> None:
    """Pillow does so itself; it keeps the high byte."""
    values = (np.stack([RAMP, 1 - RAMP, RAMP / 2], axis=2) * 65535).astype(">u2")
    header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)  # 16 bits, RGB
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    assert np.array_equal(np.asarray(open_rgb(io.BytesIO(data))), values >> 8)


@pytest.mark.parametrize("mode", MODES)
def test_how_bright_deep_images_are(mode: str) -> None:
    assert part_of_white(ramp(mode)) == (1 if mode in DEPTHS else None)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.int32([[0, 65536]]), "0 to 65535 .* but are 0 to 65536"),
        (np.int32([[-1, 5]]), "0 to 65535 .* but are -1 to 5"),
        (np.float32([[0, 1.5]]), "0 to 1 .* but are 0.0 to 1.5"),
        (np.float32([[0, np.nan]]), "0 to 1 .* but are nan"),
        (np.float32([[0, np.inf]]), "0 to 1 .* but are 0.0 to inf"),
        (np.int32([[0, 255]]), "0 to 65535 .* but are at most 255, all black; save it with 8"),
        (np.int32([[0, 1]]), "at most 1, all black"),
    ],
)
def test_values_out_of_range_are_refused(values: np.ndarray[Any, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        to_rgb(Image.fromarray(values))


UPRIGHT = np.random.default_rng(0).integers(0, 255, (3, 5, 3), np.uint8)
STORED = {  # how EXIF's orientation says that an upright image lies in the file
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT),
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_images_are_turned_as_exif_says(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    data = saved(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    assert data is not None
    assert np.array_equal(np.asarray(open_rgb(io.BytesIO(data))), UPRIGHT)


def test_damaged_exif_is_no_damage_of_the_image() -> None:
    data = saved(Image.fromarray(UPRIGHT), "PNG", exif=b"Exif\0\0MM\0*\0\0\xff\xff")
    assert data is not None
    assert np.array_equal(np.asarray(open_rgb(io.BytesIO(data))), UPRIGHT)


@pytest.mark.parametrize("profile", ["not hexadecimal", "4d4d", "", "4d4d002a000000"])
def test_unreadable_exif_is_no_damage_but_that_of_pixels_is(profile: str) -> None:
    """As old ImageMagick writes it into a PNG."""
    info = PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n      20\n{profile}")
    data = saved(Image.fromarray(UPRIGHT), "PNG", pnginfo=info)
    assert data is not None
    assert np.array_equal(np.asarray(open_rgb(io.BytesIO(data))), UPRIGHT)
    with pytest.raises(OSError, match="truncated"):
        open_rgb(io.BytesIO(data[: data.index(b"IDAT") + 10]))


def test_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (40, 200)]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert data is not None
    assert np.unique(np.asarray(open_rgb(io.BytesIO(data)))).tolist() == [40]


def test_large_images_are_read_and_bombs_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(Image.fromarray(UPRIGHT), "PNG")
    assert data is not None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # of 15
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_rgb(io.BytesIO(data)).size == (5, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)
    with pytest.raises(Image.DecompressionBombError):
        open_rgb(io.BytesIO(data))
