"""An image of any mode as upright RGB of 8 bits, without clipping what is deeper."""

import warnings
from typing import IO

import numpy as np
from PIL import Image

__all__ = ["open_rgb", "part_of_white", "to_rgb"]

_ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LARGEST = {"I": 65535, "F": 1}  # what is white; in modes I;16, I;16B, ... as in I
_LARGEST_OF_8_BITS = 255


def open_rgb(file: IO[bytes]) -> Image.Image:
    """Decode an image; of an animation or a file of several pages, the first.

    Raises:
        Exception: it is damaged, too large (Pillow's limit, 179 megapixels) or no image; decoders
            raise all sorts of errors.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what cannot be read is named; half a bomb can
        return to_rgb(Image.open(file))


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF data say, if they can be read, and make it RGB.

    Grey values of 16 bits (modes I;16 and I) are divided by 257, floats (F) are 0 for black to 1
    for white. Transparency is dropped: the colours below it stay, as in torchvision and timm.

    Raises:
        ValueError: a value is out of that range, or those of 32 bits are of 8 bits, as it seems.
    """
    image = _upright(image)
    largest = _largest(image)
    if largest is not None:
        image = _of_8_bits(image, largest)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # Pillow warns of a palette's transparency otherwise
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF data say; where these cannot be read, as it is, as timm takes all."""
    image.load()  # what is wrong with the pixels is raised
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # parsers raise all sorts of errors
        return image
    return image if turn is None else image.transpose(turn)


def part_of_white(image: Image.Image) -> float | None:
    """The largest value of a grey image of more than 8 bits, 1 for white; None of any other.

    Raises:
        Exception: it cannot be decoded; decoders raise all sorts of errors.
    """
    largest = _largest(image)
    return None if largest is None else float(np.asarray(image).max()) / largest


def _largest(image: Image.Image) -> int | None:
    return _LARGEST.get(image.mode.partition(";")[0])


def _of_8_bits(image: Image.Image, largest: int) -> Image.Image:
    values = np.asarray(image)
    least, most = values.min(), values.max()
    if not (least >= 0 and most <= largest):  # NaN is neither
        raise ValueError(
            f"its values must be 0 to {largest} (black to white), but are {least} to {most}"
        )
    if image.mode == "I" and 0 < most <= _LARGEST_OF_8_BITS:
        raise ValueError(
            f"its values of 32 bits must be 0 to {largest} (black to white), but are at most {most}"
            ", all black; save it with 8 bits, or scale it"
        )
    return Image.fromarray(np.rint(values * (255 / largest)).astype(np.uint8))
