"""Forward, loss and generation with images."""

import json
from pathlib import Path

import pytest
import tiny
import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.language_model.builder import read_config, type_of

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
            norm.eval()  # only training uses batch statistics
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
    with pytest.raises(ValueError, match="1 <image>.* 0 images"):
        model.generate(torch.tensor([[1, IMAGE, 6]]), max_new_tokens=1)


PAD = 0
CALLS = {
    "generate": lambda model, ids, **more: model.generate(ids, max_new_tokens=1, do_sample=False, **more),
    "generate by name": lambda model, ids, **more: model.generate(input_ids=ids, max_new_tokens=1, **more),
    "forward": lambda model, ids, **more: model(input_ids=ids, **more),
    "forward with labels": lambda model, ids, **more: model(input_ids=ids, labels=ids.clamp(min=0), **more),
}


@pytest.fixture
def padded_model(model):
    """The model with a padding token that is not a word. The state of transformers' warnings is reset."""
    from transformers.utils import logging

    logging.warning_once.cache_clear()
    model.generation_config.pad_token_id = PAD
    yield model
    model.generation_config.pad_token_id = None


@pytest.mark.parametrize("sees", [True, False], ids=["with images", "text alone"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("call", CALLS)
def test_a_padded_batch_without_a_mask_is_warned_of_once(padded_model, caplog, call, padding_side, sees):
    rows = [[1, IMAGE, 6, 7], [1, IMAGE]] if sees else [[1, 5, 6, 7], [1, 5]]
    pad = {"batch_first": True, "padding_side": padding_side, "padding_value": PAD}
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], **pad)
    more = {"images": torch.randn(2, 3, 56, 56)} if sees else {}
    CALLS[call](padded_model, ids, attention_mask=ids != PAD, **more)
    assert "attention mask" not in caplog.text
    for _ in range(2):
        CALLS[call](padded_model, ids, **more)
    assert caplog.text.count("attention mask") == 1
    assert "`attention_mask`" in caplog.text


@pytest.mark.parametrize("call", CALLS)
def test_rows_without_padding_and_a_row_that_ends_its_text_are_not_warned_of(padded_model, caplog, call):
    CALLS[call](padded_model, torch.tensor([[1, 5, PAD, 6], [1, 5, 6, 7]]))
    padded_model.generation_config.pad_token_id = padded_model.config.eos_token_id
    CALLS[call](padded_model, torch.tensor([[1, 5, 6, padded_model.config.eos_token_id]]))
    cache = padded_model(input_ids=torch.tensor([[1, 5]]), use_cache=True).past_key_values
    padded_model(input_ids=torch.tensor([[PAD]]), past_key_values=cache)
    assert "attention mask" not in caplog.text


def test_the_padding_token_of_the_call_counts_first(padded_model, caplog):
    padded_model.generate(torch.tensor([[1, 5, 6], [1, 5, 9]]), pad_token_id=9, max_new_tokens=1)
    assert "padding token 9" in caplog.text


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, {}),  # Vicuna's
        ({"do_sample": False, "top_k": 20, "min_p": 0.1}, {"do_sample": False}),
        ({"do_sample": True, "temperature": 0.9}, {"do_sample": True, "temperature": 0.9}),
    ],
)
def test_a_model_over_a_language_model_that_holds_idle_sampling_settings_can_be_saved(
    tmp_path, settings, kept
):
    language_model = Path(tiny.save_language_model(tmp_path / "language_model"))
    (language_model / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **settings}))
    config = read_config(language_model)
    model = type_of(config).from_pretrained(language_model, config=config)
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert {name: value for name, value in saved.items() if name in {*settings, "do_sample"}} == kept
    assert saved["eos_token_id"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["visualprism_v2", "mlp2x_gelu"])
def test_vision_in_one_compiled_graph_gives_the_same_features(name, tmp_path, monkeypatch):
    compiled = torch.compile
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(
        torch, "compile", lambda function, **options: compiled(function, backend=count, fullgraph=True)
    )
    model = tiny.build(tmp_path, mm_projector_type=name)
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = model.encode_images(images)
        model.compile_vision()
        first = model.encode_images(images)
        model.encode_images(torch.randn(2, 3, 56, 56))
    torch.testing.assert_close(first, expected, atol=1e-6, rtol=1e-5)  # later calls did not overwrite it
    assert len(graphs) == 1
    assert model.encode_images(images).requires_grad  # gradients flow through it
    assert len(graphs) == 1
