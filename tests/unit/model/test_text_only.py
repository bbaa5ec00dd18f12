"""Calls about images on a text-only model: a clear value or a UserError, never an AttributeError."""

import pytest
import tiny
import torch

from llava.constants import IMAGE_TOKEN_INDEX
from llava.errors import UserError
from llava.model.language_model.builder import read_config, type_of

IMAGES = torch.zeros(1, 3, 56, 56)
QUESTIONS = {
    "tokens_per_image": lambda model: model.tokens_per_image(),
    "tokens_per_image of s": lambda model: model.tokens_per_image(2),
    "tokens_per_view": lambda model: model.tokens_per_view(),
    "set_scale_factor": lambda model: model.set_scale_factor(2),
    "view_grid": lambda model: model.view_grid(),
    "tiling": lambda model: model.tiling,
    "visual_positions_of": lambda model: model.visual_positions_of((40, 30)),
    "encode_images": lambda model: model.encode_images(IMAGES),
    "vision_parts": lambda model: model.vision_parts(),
    "forward": lambda model: model(input_ids=torch.tensor([[1, IMAGE_TOKEN_INDEX]]), images=IMAGES),
    "generate": lambda model: model.generate(torch.tensor([[1, IMAGE_TOKEN_INDEX]]), images=IMAGES),
}


@pytest.fixture(scope="module", params=["llama", "mpt"])
def model(request, tmp_path_factory):
    folder = tiny.save_language_model(tmp_path_factory.mktemp("text") / request.param, request.param)
    config = read_config(folder)
    return type_of(config).from_pretrained(folder, config=config).eval()


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_about_images_says_that_the_model_is_text_only(model, question):
    with pytest.raises(UserError, match="text-only"):
        QUESTIONS[question](model)


def test_it_has_no_visual_tokens_and_no_parts_that_see_and_still_speaks(model):
    assert model.num_visual_tokens == 0
    assert model.get_vision_tower() is None
    assert model.get_projector() is None
    answer = model.generate(torch.tensor([[1, 5, 6]]), max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert answer.shape == (1, 2)
    ids = torch.tensor([[1, 5, 6]])
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    model.eval()
