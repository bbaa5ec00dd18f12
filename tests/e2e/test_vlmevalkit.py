"""The calls that VLMEvalKit makes to a LLaVA model, repeated one by one."""

from argparse import Namespace

import pytest
import tiny
import torch
from PIL import Image

from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import SeparatorStyle, conv_templates
from llava.mm_utils import (
    KeywordsStoppingCriteria,
    get_model_name_from_path,
    process_images,
    tokenizer_image_token,
)
from llava.model.builder import load_pretrained_model

MAX_NEW_TOKENS = 24
GENERATION = {"do_sample": False, "temperature": 0, "top_p": None, "num_beams": 1, "use_cache": True}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    path = str(tiny.save_llava(tmp_path_factory.mktemp("vlmevalkit") / "model"))
    return load_pretrained_model(
        model_path=path,
        model_base=None,
        model_name=get_model_name_from_path(path),
        device="cpu",
        device_map="cpu",
    )


def generate(loaded, content: str, images: list, stop: str | None = None, dtype=torch.float16) -> tuple:
    """VLMEvalKit's generate_inner; returns (new ids long[1, n], their text)."""
    tokenizer, model, image_processor, _ = loaded
    pixels = None
    if images:
        pixels = process_images(images, image_processor, Namespace(image_aspect_ratio="pad")).to("cpu", dtype)
    template = conv_templates["llava_v1"]
    assert template.sep_style == SeparatorStyle.TWO
    prompt = f"{template.system} USER: {content} ASSISTANT: "
    ids = tokenizer_image_token(prompt, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt").unsqueeze(0)
    stopping = KeywordsStoppingCriteria([stop or template.sep2], tokenizer, ids)
    with torch.inference_mode():
        new_ids = model.generate(
            ids, images=pixels, stopping_criteria=[stopping], max_new_tokens=MAX_NEW_TOKENS, **GENERATION
        )
    return new_ids, tokenizer.batch_decode(new_ids, skip_special_tokens=True)[0].strip()


IMAGES = [Image.new("RGB", (60, 40), "red"), Image.new("RGB", (40, 90), "blue")]


@pytest.mark.parametrize(
    ("content", "num_images"),
    [("<image>What is it?", 1), ("<image>Is it as<image>?", 2), ("What is a circle?", 0)],
)
def test_new_tokens_alone_come_back_for_any_number_of_images(loaded, content, num_images):
    new_ids, text = generate(loaded, content, IMAGES[:num_images])
    assert 0 < new_ids.shape[1] <= MAX_NEW_TOKENS
    assert "USER" not in text
    assert generate(loaded, content, IMAGES[:num_images], dtype=torch.float32)[1] == text


def test_the_images_and_their_order_matter(loaded):
    content = "<image>Is it as<image>?"
    assert generate(loaded, content, IMAGES)[1] != generate(loaded, content, IMAGES[::-1])[1]


def test_a_stop_word_of_several_tokens_ends_the_answer(loaded):
    new_ids, _ = generate(loaded, "<image>What is it?", IMAGES[:1])
    stop = loaded[0].decode(new_ids[0, 3:6])
    stopped, _ = generate(loaded, "<image>What is it?", IMAGES[:1], stop=stop)
    assert stopped.tolist() == new_ids[:, :6].tolist()
