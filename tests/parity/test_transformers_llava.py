"""With the same weights, transformers' own Llava and our model give the same logits and answers."""

import pytest
import tiny
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from llava.constants import IMAGE_TOKEN_INDEX

pytestmark = pytest.mark.transformers

PLACEHOLDER_ID = tiny.VOCABULARY - 1  # transformers repeats an ordinary id for each visual token
NUM_PATCHES = 16


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    ours = tiny.build(tmp_path_factory.mktemp("parity"), mm_projector_type="mlp2x_gelu")
    config = LlavaConfig(
        vision_config=ours.get_vision_tower().config.to_dict(),
        text_config={**ours.config.to_dict(), "model_type": "llama"},
        image_token_index=PLACEHOLDER_ID,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
    )
    theirs = LlavaForConditionalGeneration(config).eval()
    theirs.model.vision_tower.load_state_dict(ours.get_vision_tower().vision_tower.state_dict())
    projector = ours.get_projector()
    theirs.model.multi_modal_projector.linear_1.load_state_dict(projector[0].state_dict())
    theirs.model.multi_modal_projector.linear_2.load_state_dict(projector[2].state_dict())
    text = {
        name.removeprefix("model."): tensor
        for name, tensor in ours.state_dict().items()
        if not name.startswith(("model.vision_tower", "model.mm_projector", "lm_head"))
    }
    theirs.model.language_model.load_state_dict(text)
    theirs.lm_head.load_state_dict(ours.lm_head.state_dict())
    return ours, theirs


def prompts(padding_side):
    """Two rows with one and two images, in our form and in transformers', with masks; three images."""
    torch.manual_seed(1)
    rows = [[1, 5, "image", 7, 8, 9], [1, "image", 6, "image", 10]]
    images = torch.randn(3, 3, 56, 56)

    def batch(rows):
        rows = [torch.tensor(row) for row in rows]
        pad = {"batch_first": True, "padding_side": padding_side}
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], **pad)
        return torch.nn.utils.rnn.pad_sequence(rows, **pad), mask

    ours = [[IMAGE_TOKEN_INDEX if token == "image" else token for token in row] for row in rows]
    theirs = [
        [t for token in row for t in ([PLACEHOLDER_ID] * NUM_PATCHES if token == "image" else [token])]
        for row in rows
    ]
    return batch(ours), batch(theirs), images


@pytest.mark.parametrize("padding_side", ["left", "right"])
@torch.no_grad()
def test_logits_agree(pair, padding_side):
    ours, theirs = pair
    ours.config.tokenizer_padding_side = padding_side
    (our_ids, our_mask), (their_ids, their_mask), images = prompts(padding_side)
    our_logits = ours(input_ids=our_ids, attention_mask=our_mask, images=images).logits
    positions = (their_mask.cumsum(1) - 1).clamp(min=0)
    their_logits = theirs(
        input_ids=their_ids, attention_mask=their_mask, position_ids=positions, pixel_values=images
    ).logits
    assert our_logits.shape == their_logits.shape
    kept = their_mask.bool()
    torch.testing.assert_close(our_logits[kept], their_logits[kept], atol=1e-4, rtol=0)


@torch.no_grad()
def test_greedy_answers_agree(pair):
    ours, theirs = pair
    (our_ids, our_mask), (their_ids, their_mask), images = prompts("left")
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    our_answer = ours.generate(our_ids, images=images, attention_mask=our_mask, **options)
    answer = theirs.generate(input_ids=their_ids, attention_mask=their_mask, pixel_values=images, **options)
    assert torch.equal(our_answer, answer[:, their_ids.shape[1] :])


def test_loss_and_projector_gradient_agree(pair):
    ours, theirs = pair
    (our_ids, our_mask), (their_ids, their_mask), images = prompts("right")
    ours.config.tokenizer_padding_side = "right"
    our_labels = our_ids.masked_fill((our_ids == IMAGE_TOKEN_INDEX) | ~our_mask.bool(), -100)
    their_labels = their_ids.masked_fill((their_ids == PLACEHOLDER_ID) | ~their_mask.bool(), -100)
    ours.train()
    loss = ours(input_ids=our_ids, attention_mask=our_mask, labels=our_labels, images=images).loss
    loss.backward()
    ours.eval()
    expected = theirs(
        input_ids=their_ids, attention_mask=their_mask, labels=their_labels, pixel_values=images
    ).loss
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    gradient = theirs.model.multi_modal_projector.linear_1.weight.grad
    torch.testing.assert_close(ours.get_projector()[0].weight.grad, gradient, atol=1e-5, rtol=1e-3)
