"""Forward, loss and generation with images."""

import pytest
import tiny
import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX

IMAGE = IMAGE_TOKEN_INDEX


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.build(tmp_path_factory.mktemp("arch"))


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_batched_answers_are_those_of_each_prompt_alone(model, padding_side):
    prompts = [[1, 5, IMAGE, 7, 8, 9, 10, 11], [1, IMAGE, 6], [1, 2, 3, 4]]
    images = torch.randn(2, 3, 56, 56)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    pad = {"batch_first": True, "padding_side": padding_side}
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in prompts], **pad)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in prompts], **pad).bool()
    together = model.generate(ids, images=images, attention_mask=mask, **options)
    alone = [
        model.generate(torch.tensor([row]), images=own, **options)
        for row, own in zip(prompts, (images[:1], images[1:], None), strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))


def test_generate_returns_new_tokens_only_and_takes_input_ids_by_name(model):
    ids, images = torch.tensor([[1, IMAGE, 6]]), torch.randn(1, 3, 56, 56)
    options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 3, "eos_token_id": None}
    by_name = model.generate(input_ids=ids, images=[images[0]], image_sizes=[(56, 56)], **options)
    assert by_name.shape == (1, 3)
    assert torch.equal(by_name, model.generate(ids, images=images, **options))


def test_generation_computes_no_logits_of_the_prompt(model):
    seen = []
    hook = model.lm_head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    model.generate(
        torch.tensor([[1, IMAGE, 6]]), images=torch.randn(1, 3, 56, 56), max_new_tokens=3, min_new_tokens=3
    )
    hook.remove()
    assert seen == [1, 1, 1]


def test_training_loss_is_the_evaluation_loss_and_needs_no_logits(model):
    ids = torch.tensor([[1, 5, IMAGE, 7, 8], [1, 6, 9, 10, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()
    labels = torch.tensor([[-100, -100, -100, 7, 8], [-100, 6, 9, 10, -100]])
    images = torch.randn(1, 3, 56, 56)
    expected = model(input_ids=ids, attention_mask=mask, labels=labels, images=images).loss
    model.get_model().train()
    model.training = True
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.eval()  # batch statistics are training's own
    output = model(input_ids=ids, attention_mask=mask, labels=labels, images=images)
    halves = model(
        input_ids=ids, attention_mask=mask, labels=labels, images=images, num_items_in_batch=torch.tensor(10)
    )
    model.eval()
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(halves.loss, expected * 5 / 10)
    assert output.logits is None


def test_a_text_only_batch_still_trains_through_the_projector_with_zero_gradient(model):
    ids = torch.tensor([[1, 5, 6]])
    before = {k: v.clone() for k, v in model.get_projector().state_dict().items() if "running" in k}
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    model.eval()
    after = model.get_projector().state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    for name, parameter in model.get_projector().named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() == 0, name
    model.zero_grad()


def test_a_batch_without_labels_has_a_finite_loss(model):
    ids = torch.tensor([[1, 5, 6]])
    model.train()
    loss = model(input_ids=ids, labels=torch.full_like(ids, IGNORE_INDEX)).loss
    model.eval()
    assert loss.item() == 0.0


def test_llavas_own_preparation_call_keeps_its_six_answers(model):
    ids = torch.tensor([[1, IMAGE, 6]])
    images = torch.randn(1, 3, 56, 56)
    answers = model.prepare_inputs_labels_for_multimodal(ids, None, None, None, ids, images)
    assert answers[0] is None
    assert answers[4].shape == (1, 2 + model.num_visual_tokens, 32)
    assert answers[5][0].tolist() == [1] + [IGNORE_INDEX] * model.num_visual_tokens + [6]


def test_placeholders_without_images_are_refused(model):
    with pytest.raises(ValueError, match="1 <image> placeholders, but 0 images"):
        model.generate(torch.tensor([[1, IMAGE, 6]]), max_new_tokens=1)
