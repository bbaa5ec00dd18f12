"""Opens pictures. All files become upright 8-bit RGB here.

These are the rules: a picture is turned as its orientation tag says; transparent pixels become white; 16-bit
values are scaled to 8 bits; an animation gives its first frame. Sizes are (width, height) in pixels.
"""

from __future__ import annotations

import base64
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Transpose

from llava.errors import UserError
from llava.textfile import absence, shown_name

Source = str | Path | BinaryIO

# What Pillow's decoders raise for a broken file, found by trial, such as SyntaxError for a PNG's chunk
BROKEN = (
    *(OSError, EOFError, SyntaxError, ValueError, ArithmeticError, LookupError, TypeError, RuntimeError),
    *(struct.error, zlib.error),
)
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}  # by the value of the EXIF tag Orientation
SIDEWAYS = (Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90)
ORIENTATION_KEYS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # of Image.info
RANGE_16_BIT = ("PNG", "PPM")  # formats whose mode "I" holds 0 to 65535
HIGHEST_12_BIT = 4095


class ImageError(UserError):
    """A picture that cannot be used; `reason` continues the message after the name."""

    def __init__(self, reason: str, name: str = "A picture"):
        super().__init__(f"{name} {reason}")
        self.reason = reason


def load_image(
    source: Source,
    formats: tuple[str, ...] | None = None,
    check_size: Callable[[int, int], None] | None = None,
    shortest_side: int | None = None,
) -> Image.Image:
    """Read an image file completely, upright and as RGB.

    Args:
        source: a path, or a binary file; if the file has a `name`, messages use it.
        formats: Pillow's names of the accepted formats; None: all.
        check_size: is called with width and height before a pixel is decoded, and may raise.
        shortest_side: a JPEG picture may be decoded at a half, a quarter or an eighth of its size, as long as
            no side is shorter than this. That takes a fraction of the time.
    Raises:
        ImageError: if it is missing, truncated or no image, or the range of its pixels is unknown.
    """
    with _opened(source, formats) as image:
        if check_size is not None:
            check_size(*_upright_size(image))
        turn = _turn(image)  # before the pixels are read, as for image_size
        if shortest_side is not None:
            image.draft(None, (shortest_side, shortest_side))  # has no effect on other formats
        rgb = to_rgb(image)
        if turn is None:
            return rgb
        rgb = rgb.transpose(turn)
        for key in ORIENTATION_KEYS:  # otherwise it could be turned again
            rgb.info.pop(key, None)
        return rgb


def image_size(source: Source) -> tuple[int, int]:
    """Width and height of the upright picture, from the header only. Raises ImageError, as load_image."""
    with _opened(source) as image:
        return _upright_size(image)


def load_image_from_base64(image: str | bytes) -> Image.Image:
    """Decode a base64 string of an encoded image file (PNG, JPEG, ...). Raises ImageError, as load_image."""
    try:
        content = base64.b64decode(image)
    except ValueError as error:
        raise ImageError(f"is not valid base64 ({error}).") from error
    return load_image(BytesIO(content))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to a new one in 8-bit RGB.

    Transparency, by a channel, a palette or a transparent colour, is blended with white.

    Raises ImageError for 32-bit integers and floating-point numbers, because files do not state their range.
    """
    packing = _packing(image)
    image.load()  # some formats show their transparency only now
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in RANGE_16_BIT):
        return _scaled(image, HIGHEST_12_BIT if packing == "I;12" else 65535).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "signed or 32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise ImageError(
            f"has pixels that are {kind}, and the file does not state their range; "
            "save it with 8 or 16 bits per channel."
        )
    if not image.has_transparency_data:
        return image.convert("RGB")
    key = image.info.get("transparency")
    if packing in ("L;2", "L;4"):  # Pillow scales these pixels to 8 bits, but not the transparent colour
        image.info["transparency"] = key * (85 if packing == "L;2" else 17)  # type: ignore[operator]
    elif packing == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in key)  # type: ignore[union-attr]
    rgba = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
    rgb = Image.new("RGB", rgba.size, "white")
    rgb.paste(rgba, mask=rgba.getchannel("A"))
    return rgb


def _packing(image: Image.Image) -> str:
    """Pillow's name for the packing of an opened file's pixels; "" once the pixels are read."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _scaled(image: Image.Image, highest: int) -> Image.Image:
    """Scale grey values from 0..`highest` to 8 bits; the transparent colour becomes white."""
    values = np.asarray(image).astype(np.uint32)
    if isinstance(clear := image.info.get("transparency"), int):
        values[values == clear] = highest
    return Image.fromarray(((values * 255 + highest // 2) // highest).clip(max=255).astype(np.uint8))


def _turn(image: Image.Image) -> Transpose | None:
    """The transposition that makes an opened picture upright, from its header."""
    if image.format == "TIFF":  # Pillow turns it as it reads it, and has swapped its size already
        return None
    try:
        # Image's own method: PNG's would decode the whole picture, in case the tag follows the pixels
        return TURNS.get(Image.Image.getexif(image).get(ExifTags.Base.Orientation))  # type: ignore[arg-type]
    except BROKEN:  # the pixels may still be good
        return None


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if _turn(image) in SIDEWAYS else (width, height)


@contextmanager
def _opened(source: Source, formats: tuple[str, ...] | None = None) -> Iterator[Image.Image]:
    is_file = hasattr(source, "read")
    label = getattr(source, "name", None) if is_file else source
    name = "A picture" if label is None else f"Image file {shown_name(label)}"
    try:
        with Image.open(source, formats=formats) as image:
            yield image
    except ImageError as error:
        raise ImageError(error.reason, name) from error
    except UserError:  # raised by check_size
        raise
    except UnidentifiedImageError as error:
        known = f"not {' or '.join(formats)}" if formats else "in a format that Pillow does not know"
        raise ImageError(
            f"cannot be read: it is {known}, or it is damaged; fetch it again, or remove it.", name
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"cannot be read ({error}); scale it down, or remove it.", name) from error
    except BROKEN as error:
        if not is_file and not os.path.isfile(source):  # type: ignore[arg-type]
            raise ImageError(f"{absence(source)}; check --image_folder.", name) from error  # type: ignore[arg-type]
        raise ImageError(
            f"cannot be read ({error}); it may be truncated or corrupt: fetch it again, or remove it.", name
        ) from error
