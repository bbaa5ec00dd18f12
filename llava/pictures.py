"""Opening a picture: the one place where files become upright 8-bit RGB, whoever asks.

What the rules are: the picture stands as its orientation tag says; what is transparent shows white; 16-bit
values are scaled to 8 bits; of an animation the first frame counts. Sizes are (width, height) in pixels.
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

# What Pillow's decoders raise for a broken file, found by trial: SyntaxError, say, for a chunk of a PNG
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
    """A picture that cannot be used; `reason` goes on after its name."""

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
        source: a path, or a file opened for bytes, whose `name`, if it has one, is that of messages.
        formats: Pillow's names of the formats that may come; None: all of them.
        check_size: is called with width and height before a pixel is decoded, and may raise.
        shortest_side: a JPEG picture may come at a half, a quarter or an eighth of its size as long as no
            side is shorter than this; decoding it so takes a fraction of the time.
    Raises:
        ImageError: if it is missing, truncated, no image, or of pixels without a known range.
    """
    with _opened(source, formats) as image:
        if check_size is not None:
            check_size(*_upright_size(image))
        turn = _turn(image)  # before the pixels are read, as for image_size
        if shortest_side is not None:
            image.draft(None, (shortest_side, shortest_side))  # of other formats a call without effect
        rgb = to_rgb(image)
        if turn is None:
            return rgb
        rgb = rgb.transpose(turn)
        for key in ORIENTATION_KEYS:  # else it could be turned once more
            rgb.info.pop(key, None)
        return rgb


def image_size(source: Source) -> tuple[int, int]:
    """Width and height of the upright picture, by the header alone. Raises ImageError, as load_image."""
    with _opened(source) as image:
        return _upright_size(image)


def load_image_from_base64(image: str | bytes) -> Image.Image:
    """Decode a base64 string of an encoded image file (PNG, JPEG, ...). Raises ImageError, as load_image."""
    try:
        content = base64.b64decode(image)
    except ValueError as error:
        raise ImageError(f"is no base64 ({error}).") from error
    return load_image(BytesIO(content))


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB, in an image of its own.

    Transparency, by a channel, a palette or a colour that stands for it, is laid on white.

    Raises ImageError for integers of 32 bits and floating-point numbers, whose range no file tells.
    """
    packing = _packing(image)
    image.load()  # some formats tell of their transparency only now
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in RANGE_16_BIT):
        return _scaled(image, HIGHEST_12_BIT if packing == "I;12" else 65535).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "integers of 32 bits or with a sign" if image.mode == "I" else "floating-point numbers"
        raise ImageError(
            f"has pixels that are {kind}, whose darkest and lightest values the file does not tell; "
            "save it with 8 or 16 bits a channel."
        )
    if not image.has_transparency_data:
        return image.convert("RGB")
    key = image.info.get("transparency")
    if packing in ("L;2", "L;4"):  # Pillow scales these pixels to 8 bits, but not the colour that is clear
        image.info["transparency"] = key * (85 if packing == "L;2" else 17)  # type: ignore[operator]
    elif packing == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in key)  # type: ignore[union-attr]
    rgba = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
    rgb = Image.new("RGB", rgba.size, "white")
    rgb.paste(rgba, mask=rgba.getchannel("A"))
    return rgb


def _packing(image: Image.Image) -> str:
    """How an opened file's pixels are packed, in Pillow's words, before they are read; "" afterwards."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _scaled(image: Image.Image, highest: int) -> Image.Image:
    """Grey values of 0 to `highest` as 8 bits, the colour that stands for transparency as white."""
    values = np.asarray(image).astype(np.uint32)
    if isinstance(clear := image.info.get("transparency"), int):
        values[values == clear] = highest
    return Image.fromarray(((values * 255 + highest // 2) // highest).clip(max=255).astype(np.uint8))


def _turn(image: Image.Image) -> Transpose | None:
    """What makes an opened picture upright, by its header."""
    if image.format == "TIFF":  # Pillow turns it as it reads it, and has swapped its size already
        return None
    try:
        # Image's own: PNG's would decode the whole picture first, in case the tag follows the pixels
        return TURNS.get(Image.Image.getexif(image).get(ExifTags.Base.Orientation))  # type: ignore[arg-type]
    except BROKEN:  # the pixels may be good all the same
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
    except UserError:  # of check_size
        raise
    except UnidentifiedImageError as error:
        known = f"none of {', '.join(formats)}" if formats else "of no format that Pillow knows"
        raise ImageError(
            f"cannot be read: it is {known}, or broken; fetch it again, or remove it.", name
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"cannot be read ({error}); scale it down, or remove it.", name) from error
    except BROKEN as error:
        if not is_file and not os.path.isfile(source):  # type: ignore[arg-type]
            raise ImageError(f"{absence(source)}; check --image_folder.", name) from error  # type: ignore[arg-type]
        raise ImageError(
            f"cannot be read ({error}); it may be truncated or corrupt: fetch it again, or remove it.", name
        ) from error
