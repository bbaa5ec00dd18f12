"""With the same weights, transformers' own LlavaNext (LLaVA-1.6) and our model give the same logits."""

from argparse import Namespace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from transformers import CLIPImageProcessor, LlavaNextConfig, LlavaNextForConditionalGeneration
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import process_images

PLACEHOLDER_ID = tiny.VOCABULARY - 1  # transformers repeats an ordinary id for each visual token
SIDE = 56
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56]]  # (width, height)
SIZES = [(130, 70), (60, 200), (200, 40), (56, 56)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    ours = tiny.build(
        tmp_path_factory.mktemp("parity"),
        mm_projector_type="mlp2x_gelu",
        image_aspect_ratio="anyres",
        image_grid_pinpoints=PINPOINTS,
        mm_patch_merge_type="spatial_unpad",
    )
    config = LlavaNextConfig(
        vision_config=ours.get_vision_tower().config.to_dict(),
        text_config={**ours.config.to_dict(), "model_type": "llama"},
        image_token_index=PLACEHOLDER_ID,
        image_grid_pinpoints=[[height, width] for width, height in PINPOINTS],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
    )
    theirs = LlavaNextForConditionalGeneration(config).eval()
    theirs.model.vision_tower.load_state_dict(ours.get_vision_tower().vision_tower.state_dict())
    projector = ours.get_projector()
    theirs.model.multi_modal_projector.linear_1.load_state_dict(projector[0].state_dict())
    theirs.model.multi_modal_projector.linear_2.load_state_dict(projector[2].state_dict())
    theirs.model.image_newline.data.copy_(ours.model.image_newline)
    text = {
        name.removeprefix("model."): tensor
        for name, tensor in ours.state_dict().items()
        if not name.startswith(("model.vision_tower", "model.mm_projector", "model.image_newline", "lm_head"))
    }
    theirs.model.language_model.load_state_dict(text)
    theirs.lm_head.load_state_dict(ours.lm_head.state_dict())
    return ours, theirs


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_logits_agree(pair, size):
    ours, theirs = pair
    values = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(values)
    square = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    pixels = process_images([image], CLIPImageProcessor(**square), ours.config)
    our_ids = torch.tensor([[1, 5, IMAGE_TOKEN_INDEX, 7, 8, 9]])
    our_logits = ours(input_ids=our_ids, images=pixels, image_sizes=[image.size]).logits

    reference = LlavaNextImageProcessorPil(
        **square, image_grid_pinpoints=[[height, width] for width, height in PINPOINTS]
    )
    inputs = reference(images=image, return_tensors="pt")
    positions = ours.visual_positions_of(size)
    their_ids = torch.tensor([[1, 5, *[PLACEHOLDER_ID] * positions, 7, 8, 9]])
    their_logits = theirs(
        input_ids=their_ids,
        pixel_values=inputs["pixel_values"].to(pixels[0].dtype),
        image_sizes=inputs["image_sizes"],
    ).logits
    torch.testing.assert_close(our_logits, their_logits, atol=1e-4, rtol=0)


def test_the_newline_learns(pair):
    ours, _ = pair
    pixels = process_images(
        [Image.new("RGB", (130, 70))],
        CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        Namespace(image_aspect_ratio="anyres", image_grid_pinpoints=PINPOINTS),
    )
    ids = torch.tensor([[1, IMAGE_TOKEN_INDEX, 7]])
    ours(input_ids=ids, images=pixels, image_sizes=[(130, 70)]).logits.sum().backward()
    assert ours.model.image_newline.grad.abs().sum() > 0
