"""The words of an answer about several pictures, with a model that attends to white, at any s."""

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.visualization.attention import attention_to_image
from llava.visualization.token_map import ImageMapping, TokenMap, token_map
from llava.visualization.words import PICTURE_SIDE, WordAttention, answer_words, draw_word, word_attention

ANSWER = "a triangle"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_llava(tmp_path_factory.mktemp("words") / "model")


def load(folder):
    return load_pretrained_model(str(folder))[:3]


def look(loaded, images, **options):
    """word_attention of ANSWER, for a question about these images."""
    tokenizer, model, processor = loaded
    prompt = "<image>" * len(images) + "what is it?"
    input_ids = tokenizer_image_token(prompt, tokenizer, return_tensors="pt")[None]
    new_ids = tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    pixels = list(process_images(images, processor, model.config)) if images else []
    sizes = [image.size for image in images]
    return word_attention(model, tokenizer, processor, input_ids, new_ids, pixels, sizes, **options), new_ids


def white_where_bright(loaded):
    """A model.encode_images that makes each token white or black, by the mean of its own pixels."""
    _, model, processor = loaded
    processor.image_mean, processor.image_std = [0.0] * 3, [1.0] * 3

    def encode_images(views, scale_factor=None):
        side = tiny.LLAVA_PATCH_SIZE * (scale_factor or model.config.scale_factor)
        means = torch.nn.functional.avg_pool2d(views.mean(dim=1), side).flatten(1)
        return tiny.colour_tokens(means > 0.5)

    return encode_images


@pytest.mark.parametrize("scale_factor", [None, 3, 1])
def test_the_lit_pixels_are_the_white_ones_of_the_right_picture(folder, scale_factor):
    loaded = load(folder)
    tiny.look_at_white(loaded[1], loaded[0])
    loaded[1].encode_images = white_where_bright(loaded)
    pixels = np.zeros((96, 96, 3), np.uint8)
    side = 16 * (scale_factor or 2)  # the side of a token
    pixels[:side, -side:] = 255
    black, white = Image.new("RGB", (96, 96)), Image.fromarray(pixels)
    attention, _ = look(loaded, [black, white], scale_factor=scale_factor)
    drawn = draw_word(attention, [black, white], layer=1, word=0)
    assert attention.weights.shape[2] == 2 * (6 // (scale_factor or 2)) ** 2
    assert [picture.shape for picture in drawn] == [(PICTURE_SIDE, PICTURE_SIDE, 3)] * 2
    end = side * PICTURE_SIDE // 96
    corner, dark = drawn[1][10 : end - 10, 10 - end : -10], drawn[0][0, 0]
    assert (drawn[0] == dark).all()  # no heat in the black picture
    assert (drawn[1][end + 20 :] == dark).all()
    assert (corner == corner[0, 0]).all()
    assert int(corner[0, 0, 0]) > int(corner[0, 0, 2]) + 20  # the red end of the scale
    assert float(attention.row(1, None).sum()) > 0.9


def test_a_words_weights_are_the_means_over_its_tokens(folder):
    loaded = load(folder)
    images = [Image.new("RGB", (60, 40), "red"), Image.new("RGB", (40, 90), "blue")]
    attention, new_ids = look(loaded, images)
    assert attention.words == ["a", "triangle"]
    tokenizer, model, processor = loaded
    words, tokens = answer_words(tokenizer, new_ids, None)
    assert words == attention.words
    prompt = tokenizer_image_token("<image><image>what is it?", tokenizer, return_tensors="pt")[None]
    sequence = torch.cat([prompt, torch.tensor([new_ids])], dim=1)
    pixels = list(process_images(images, processor, model.config))
    sizes = [image.size for image in images]
    whole = attention_to_image(model, sequence, len(new_ids), pixels, sizes, [0, 1, 2]).numpy()
    for word, own in enumerate(tokens):
        np.testing.assert_allclose(attention.weights[:, word], whole[:, own].mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(attention.row(2, None), whole[2].mean(axis=0), rtol=1e-5)


def test_a_map_of_another_s_has_its_tokens(folder):
    _, model, processor = load(folder)
    assert [len(token_map(model, (60, 40), processor, s).order) for s in (None, 1, 3)] == [9, 36, 4]


def test_an_answer_without_pictures_has_no_attention_to_show(folder):
    with pytest.raises(ValueError, match="no picture"):
        look(load(folder), [])


def one_word(weights: list[float]) -> WordAttention:
    """A word over a 2x2 grid of a square picture."""
    mapping = TokenMap((ImageMapping(40, 40, 40, (1.0, 1.0), (0.0, 0.0)),), 2, np.arange(4))
    row = np.array(weights, np.float32)
    return WordAttention(["word"], row[None, None], row[None], [mapping])


@pytest.mark.parametrize("colour", ["red", "orange", "yellow", "lime", "cyan", "blue", "purple", "magenta"])
def test_a_picture_keeps_its_hues_under_any_attention(colour):
    picture = Image.new("RGB", (40, 40), colour)
    (drawn,) = draw_word(one_word([0, 0.1, 0.2, 0.3]), [picture], 0, 0)
    shown = np.asarray(Image.fromarray(drawn).convert("HSV")).astype(int)
    hue = np.asarray(picture.convert("HSV")).astype(int)[0, 0, 0]
    assert np.abs((shown[..., 0] - hue + 128) % 256 - 128).max() < 256 * 15 / 360  # 15 degrees
    assert shown[..., 1].min() > 160


@pytest.mark.parametrize("colour", ["black", "grey", "white", "red", "blue", "navy"])
def test_attention_brightens_pixels_of_every_colour(colour):
    (drawn,) = draw_word(one_word([0, 0.1, 0.2, 0.3]), [Image.new("RGB", (40, 40), colour)], 0, 0)
    side = PICTURE_SIDE
    places = [(0, 0), (0, side - 1), (side - 1, 0), (side - 1, side - 1)]
    brightness = [int(drawn[place].sum()) for place in places]
    assert (np.diff(brightness) > 20).all()
