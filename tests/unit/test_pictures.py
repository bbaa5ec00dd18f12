"""One set of rules for every picture: upright, 8-bit RGB, blended with white, or refused by name."""

import base64
import io
import re
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features
from PIL.Image import Transpose
from transformers import CLIPImageProcessor

from llava import mm_utils
from llava.data.sample import load_images
from llava.errors import UserError
from llava.eval.generation import open_image
from llava.mm_utils import image_size, load_image, process_images
from llava.pictures import load_image_from_base64, to_rgb
from llava.serve import cli, page_session
from llava.serve.images import decode_image

# the operation that turns an upright picture into the stored one of an orientation
STORED = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}
LOSSLESS = {
    "PNG": {},
    "TIFF": {},
    "WEBP": {"lossless": True},
    **({"AVIF": {"quality": 100, "subsampling": "4:4:4"}} if features.check("avif") else {}),
    "JPEG": {"quality": 100, "subsampling": 0},
    "MPO": {"quality": 100, "subsampling": 0},
}
OPENERS = {
    "training and evaluation": lambda path: load_image(path),
    "a record": lambda path: load_images([path.name], "record 0", path.parent.joinpath)[0],
    "a question": lambda path: open_image(path.name, path.parent),
    "a benchmark's bytes": lambda path: open_image(path.read_bytes(), Path()),
    "base64": lambda path: load_image_from_base64(base64.b64encode(path.read_bytes())),
    "the API": lambda path: decode_image(path.read_bytes(), 10**6),
    "the page": lambda path: page_session.read_picture(str(path)),
    "the terminal": lambda path: cli.read_image(str(path)),
}


def upright() -> Image.Image:
    """A picture of 30 x 20 pixels whose corners have different colours."""
    image = Image.new("RGB", (30, 20), "gray")
    for colour, corner in (("red", (0, 0)), ("lime", (20, 0)), ("blue", (0, 10)), ("white", (20, 10))):
        image.paste(colour, (*corner, corner[0] + 10, corner[1] + 10))
    return image


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def turned(path: Path, orientation: int, form: str = "PNG") -> Path:
    """The upright picture, stored in an orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = STORED[orientation]
    stored = upright() if turn is None else upright().transpose(turn)
    return saved(path, stored, format=form, exif=exif, **LOSSLESS[form])


def values(image: Image.Image) -> list:
    return np.asarray(image).tolist()


@pytest.mark.parametrize("form", LOSSLESS)
@pytest.mark.parametrize("orientation", STORED)
def test_a_picture_stands_as_its_tag_says_and_its_header_gives_that_size(tmp_path, orientation, form):
    path = turned(tmp_path / "picture", orientation, form)
    image = load_image(path)
    assert image.size == image_size(path) == (30, 20)
    difference = np.asarray(image).astype(int) - np.asarray(upright())
    assert np.abs(difference).max() <= (0 if form in ("PNG", "TIFF", "WEBP") else 8)
    assert values(ImageOps.exif_transpose(image)) == values(image), "it would be turned once more"


@pytest.mark.parametrize("opener", OPENERS)
def test_every_opener_turns_pictures_and_lays_them_on_white(tmp_path, opener):
    assert values(OPENERS[opener](turned(tmp_path / "a.png", 6))) == values(upright())
    clear = Image.new("RGBA", (3, 2), (0, 0, 0, 0))
    assert values(OPENERS[opener](saved(tmp_path / "b.png", clear))) == [[[255] * 3] * 3] * 2


def test_pictures_are_opened_in_one_place():
    package = Path(mm_utils.__file__).parent
    opens = [path for path in package.rglob("*.py") if re.search(r"Image\.open\(", path.read_text())]
    found = {path.relative_to(package).as_posix() for path in opens}
    assert found == {"pictures.py", "benchmark/data.py"}  # the latter, only to compare with Pillow


def test_a_picture_with_a_broken_tag_is_still_read(tmp_path):
    path = turned(tmp_path / "a.jpg", 6, "JPEG")
    content = path.read_bytes()
    start = content.index(b"Exif\0\0") + 6
    path.write_bytes(content[:start] + b"\xff\0\xff\0" + content[start + 4 :])
    assert load_image(path).size == image_size(path) == (20, 30)


def test_orientations_that_do_not_exist_turn_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 9
    assert values(load_image(saved(tmp_path / "a.png", upright(), exif=exif))) == values(upright())


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(depth: int, colour_type: int, row: bytes, width: int, clear: bytes) -> bytes:
    """A PNG of one row of packed samples, with the colour that means transparency."""
    header = struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(10, 22))) if colour_type == 3 else b""
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + palette
        + chunk(b"tRNS", clear)
        + pixels
        + chunk(b"IEND", b"")
    )


WHITE = [255] * 3
KEYED = {  # a PNG of each colour type and depth with one transparent sample, and the picture that it shows
    "1 bit grey": (png(1, 0, b"\x40", 2, b"\0\0"), [WHITE, WHITE]),
    "2 bits grey": (png(2, 0, b"\x18", 3, b"\0\x01"), [[0] * 3, WHITE, [170] * 3]),
    "4 bits grey": (png(4, 0, b"\x5a", 2, b"\0\x05"), [WHITE, [170] * 3]),
    "8 bits grey": (png(8, 0, b"\x05\x06", 2, b"\0\x05"), [WHITE, [6] * 3]),
    "16 bits grey": (png(16, 0, b"\x12\x34\x32\x32", 2, b"\x12\x34"), [WHITE, [50] * 3]),
    "8 bits RGB": (png(8, 2, b"\1\2\3\4\5\6", 2, b"\0\1\0\2\0\3"), [WHITE, [4, 5, 6]]),
    "16 bits RGB": (
        png(16, 2, b"\1\x10\2\x20\3\x30\4\x40\5\x50\6\x60", 2, b"\1\x10\2\x20\3\x30"),
        [WHITE, [4, 5, 6]],
    ),
    "palette, one clear": (
        png(2, 3, b"\x1b", 4, b"\xff\0"),
        [[10, 11, 12], WHITE, [16, 17, 18], [19, 20, 21]],
    ),
    "palette, half clear": (png(8, 3, b"\0\1", 2, b"\x80\0"), [[132, 133, 133], WHITE]),
}


@pytest.mark.parametrize("kind", KEYED)
def test_the_colour_that_stands_for_transparency_shows_white(kind):
    content, expected = KEYED[kind]
    assert values(load_image(io.BytesIO(content))) == [expected]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_a_channel_of_transparency_is_laid_on_white(mode):
    dark = Image.new("LA", (3, 1), (0, 255))
    dark.putpixel((1, 0), (0, 0))
    dark.putpixel((2, 0), (0, 128))
    image = dark.convert("La") if mode == "La" else dark.convert("RGBA")
    image = image if mode in ("La", "RGBA") else image.convert(mode)
    assert (image.mode, values(to_rgb(image))) == (mode, [[[0] * 3, WHITE, [127] * 3]])
    processor = CLIPImageProcessor(do_resize=False, do_center_crop=False)
    pixels = [process_images([each], processor, None) for each in (image, to_rgb(image))]
    assert torch.equal(*pixels), "evaluators hand over pictures of any mode"


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tiff", "a.ico", "a.tga"])
def test_each_format_that_has_transparency_shows_it_white(tmp_path, name):
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((200, 0, 0, 255), (0, 0, 16, 32))
    red, white = np.asarray(load_image(saved(tmp_path / name, image)))[16, [4, 28]]
    assert (red > 190).tolist() == [True, False, False]
    assert white.tolist() == WHITE


def test_where_nothing_is_transparent_the_pixels_are_those_of_plain_conversion(tmp_path):
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (40, 30, 4), dtype=np.uint8)
    rgba[..., 3] = 255
    for mode in ("RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBA", "LA"):
        image = Image.fromarray(rgba).convert("RGB").convert(mode)
        assert values(to_rgb(image)) == values(image.convert("RGB")), mode
    for name in ("a.png", "a.jpg", "a.bmp", "a.gif", "a.webp"):
        path = saved(tmp_path / name, Image.fromarray(rgba).convert("RGB"))
        with Image.open(path) as image:
            assert values(load_image(path)) == values(image.convert("RGB")), name


@pytest.mark.parametrize(
    ("mode", "form"), [("I;16", "PNG"), ("I;16", "TIFF"), ("I;16B", "TIFF"), ("I", "PPM")]
)
def test_sixteen_bits_are_scaled_to_eight(tmp_path, mode, form):
    grey = np.arange(256).reshape(16, 16)
    kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    image = Image.frombytes(mode, (16, 16), (grey * 257).astype(kind).tobytes())
    path = saved(tmp_path / "a", image, format=form)
    expected = np.repeat(grey[..., None], 3, axis=2)
    assert values(load_image(path)) == expected.tolist()


@pytest.mark.parametrize(("kind", "words"), [("<f4", "floating-point"), ("<i4", "32-bit"), ("<i2", "signed")])
def test_pixels_without_a_known_range_are_refused_by_name(tmp_path, kind, words):
    image = Image.fromarray(np.arange(12).reshape(3, 4).astype(kind))
    path = saved(tmp_path / "depth.tiff", image)
    with pytest.raises(ValueError, match=rf"depth.tiff.*{words}.*8 or 16"):
        load_image(path)
    with pytest.raises(ValueError, match="A picture .*pixels"):
        process_images([image], None, None)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_the_first_frame_of_an_animation_is_used(tmp_path, name):
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    first.save(tmp_path / name, save_all=True, append_images=[second], lossless=True)
    red, _, blue = values(load_image(tmp_path / name))[0][0]
    assert red > 200
    assert blue < 50


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none.png", "none.png.*does not exist.*--image_folder"),
        ("nul\0.png", "does not exist"),
        ("half\ud800.png", "half\ufffd.png.*does not exist"),
        ("x" * 5000, r"x{50,}\.\.\..*does not exist"),
        ("", "is a folder"),
    ],
)
def test_names_of_no_file_are_refused_in_words_that_can_be_printed(tmp_path, name, says):
    for read in (load_image, image_size):
        with pytest.raises(ValueError, match=says) as error:
            read(tmp_path / name)
        str(error.value).encode()
        assert len(str(error.value)) < 400


def test_invalid_base64_is_refused():
    with pytest.raises(ValueError, match="base64"):
        load_image_from_base64("a")


BYTES = {form: io.BytesIO() for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "TGA", "PCX")}
for form, file in BYTES.items():
    upright().save(file, form)


@pytest.mark.filterwarnings("ignore")  # Pillow's warnings about damaged parts that it does not need
@pytest.mark.parametrize("form", BYTES)
def test_whatever_is_broken_in_a_file_the_error_is_one_for_the_user(form):
    rng = np.random.default_rng(0)
    for _ in range(150):
        content = bytearray(BYTES[form].getvalue())
        for place in rng.integers(0, min(len(content), int(rng.choice([30, 10**6]))), 3):
            content[place] = rng.integers(0, 256)
        file = io.BytesIO(content[: int(rng.choice([len(content), rng.integers(len(content))]))])
        with suppress(UserError):
            load_image(file, check_size=refuse_large)


def refuse_large(width: int, height: int) -> None:
    if width * height > 10**6:
        raise UserError("large")


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("shortest_side", "expected"), [(None, 1), (50, 4), (60, 2), (100, 2), (101, 1)])
def test_a_jpeg_may_come_smaller_but_no_side_shorter_than_was_asked(
    tmp_path, shortest_side, expected, orientation
):
    gradient = np.linspace(0, 255, 600 * 200 * 3).reshape(200, 600, 3).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(gradient).save(tmp_path / "a.jpg", quality=95, exif=exif)
    whole, image = (load_image(tmp_path / "a.jpg", shortest_side=side) for side in (None, shortest_side))
    assert image.size == tuple(side // expected for side in whole.size)
    resized = np.asarray(whole.resize(image.size, Image.Resampling.BOX), dtype=int)
    assert np.abs(np.asarray(image, dtype=int) - resized).mean() < 1


def test_other_formats_come_whole_whatever_side_was_asked_for(tmp_path):
    upright().save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", shortest_side=1).size == upright().size
