"""Models whose projector is not in transformers get a class of llava.hf, with the same logits."""

import copy

import exports
import pytest
import torch
from transformers import pipeline

from llava.errors import UserError
from llava.export.folder import export
from llava.model.multimodal_projector.builder import PROJECTORS

pytestmark = pytest.mark.slow

CHATS = [[("What is it?", 1, None)], [("Which of the two?", 2, "The second."), ("Why?", 0, None)]]
OPTIONS = {"visionzip": {"num_visual_tokens": 5}, "prumerge": {"num_visual_tokens": 5}}
ANYRES = {"image_aspect_ratio": "anyres"}
ASPECT_RATIOS = {
    "square": {},
    "pad": {"image_aspect_ratio": "pad"},
    "slice": {"image_aspect_ratio": "slice"},
    "flat": ANYRES,
    "spatial": {**ANYRES, "mm_patch_merge_type": "spatial"},
    "spatial_unpad": {**ANYRES, "mm_patch_merge_type": "spatial_unpad"},
}


def check(tmp_path, tokenizer, scale_factors=(None,), **build):
    """Export a model and compare both forms at each s."""
    folder = exports.save_whole(tmp_path / "ours", copy.deepcopy(tokenizer), **build)
    export(str(folder), tmp_path / "theirs")
    ours, theirs = exports.Ours(folder), exports.Theirs(tmp_path / "theirs")
    assert type(theirs.model).__name__ == "VisualPrismForConditionalGeneration"
    for scale_factor in scale_factors:
        exports.assert_same_logits(ours, theirs, CHATS, exports.pictures(3), scale_factor)
    return ours, theirs


@pytest.mark.transformers
@pytest.mark.parametrize("projector", [*PROJECTORS, "mlp3x_gelu"])
def test_every_projector_gives_our_logits_at_every_scale(tmp_path, bpe_tokenizer, projector):
    kind = PROJECTORS.get(projector)
    fixed = projector in ("pixel_shuffle", "resampler", "ldpv2") or not getattr(kind, "compresses", False)
    scales = (None,) if fixed else (None, 1, 4)
    check(tmp_path, bpe_tokenizer, scales, mm_projector_type=projector, **OPTIONS.get(projector, {}))


@pytest.mark.transformers
@pytest.mark.parametrize("aspect_ratio", ASPECT_RATIOS)
def test_every_aspect_ratio_gives_our_logits(tmp_path, bpe_tokenizer, aspect_ratio):
    check(tmp_path, bpe_tokenizer, (None, 1), mm_projector_type="visualprism", **ASPECT_RATIOS[aspect_ratio])


@pytest.mark.transformers
@pytest.mark.parametrize(
    ("family", "tower", "fields"),
    [
        ("qwen2", "siglip", {"image_aspect_ratio": "slice", "conv_version": "qwen_2"}),
        ("qwen3", "siglip2", {"mm_projector_type": "visualprism_v2"}),
        ("mistral", "dinov2", {"mm_projector_type": "tokenpacker", "mm_vision_levels": [1, 2, 4, 5]}),
        ("llama", "clip", {"mm_projector_type": "mlp2x_gelu", "image_aspect_ratio": "slice"}),
        ("llama", "clip", {"mm_projector_type": "linear", "mm_vision_select_feature": "cls_patch"}),
        ("llama", "clip", {"mm_use_im_start_end": True, "visualprism_norm": "layer"}),
    ],
)
def test_families_towers_and_settings_give_our_logits(tmp_path, bpe_tokenizer, family, tower, fields):
    check(
        tmp_path, bpe_tokenizer, family=family, tower=tower, **{"mm_projector_type": "visualprism", **fields}
    )


@pytest.fixture(scope="module")
def prism(tmp_path_factory, bpe_tokenizer):
    """(folder, our model, exported model) with the tiles of slice, whose number depends on the image."""
    path = tmp_path_factory.mktemp("prism")
    build = {"image_aspect_ratio": "slice", "mm_projector_type": "visualprism_v2", "conv_version": "qwen_2"}
    return path / "theirs", *check(path, bpe_tokenizer, **build)


@pytest.mark.transformers
def test_generate_takes_another_scale_factor_than_the_prompt_was_made_for(prism):
    _, ours, theirs = prism
    images = exports.pictures(3)
    expected = theirs.inputs(CHATS, images, scale_factor=4)
    generate = theirs.model.generate
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 10**6}
    by_processor = generate(**expected, **options)
    by_call = generate(**theirs.inputs(CHATS, images), scale_factor=4, **options)
    assert by_call.tolist() == by_processor.tolist()
    pixels = exports.process_images(images, ours.image_processor, ours.model.config)
    ids, mask = exports.left_pad([ours.ids(chat) for chat in CHATS], 0)
    sizes = [image.size for image in images]
    own = ours.model.generate(
        ids, attention_mask=mask, images=pixels, image_sizes=sizes, scale_factor=4, **options
    )
    assert by_call[:, expected.input_ids.shape[1] :].tolist() == own.tolist()


@pytest.mark.transformers
def test_pipeline_answers(prism):
    folder, *_ = prism
    pipe = pipeline("image-text-to-text", model=str(folder))
    (image,) = exports.pictures(1)
    chat = exports.messages([("What is it?", 1, None)], iter([image]))
    answers = pipe(text=chat, max_new_tokens=3, return_full_text=False)
    assert isinstance(answers[0]["generated_text"], str)


@pytest.mark.transformers
def test_saved_and_loaded_again_it_is_the_same(prism, tmp_path):
    _, ours, theirs = prism
    theirs.model.save_pretrained(tmp_path)
    theirs.processor.save_pretrained(tmp_path)
    exports.assert_same_logits(ours, exports.Theirs(tmp_path), CHATS, exports.pictures(3))


@pytest.mark.parametrize("value", [3, 0, -1, True, "2", 2.0])
def test_a_scale_factor_that_is_not_served_is_refused(prism, value):
    """Any client may send it to a server, and the server must not fail."""
    _, _, theirs = prism
    with pytest.raises(Exception, match="scale_factor"):
        theirs.inputs(CHATS, exports.pictures(3), scale_factor=value)
    images = theirs.processor.image_processor
    with pytest.raises(UserError, match="scale_factor.*1, 2, 4"):
        images.num_image_tokens((56, 56), value)


def test_a_scale_factor_for_a_projector_that_does_not_compress_is_refused(tmp_path, bpe_tokenizer):
    _, theirs = check(tmp_path, bpe_tokenizer, mm_projector_type="linear")
    with pytest.raises(UserError, match="does not compress"):
        theirs.inputs(CHATS, exports.pictures(3), scale_factor=2)


def test_prompts_and_images_that_do_not_fit_are_refused(prism):
    _, _, theirs = prism
    inputs = theirs.inputs(CHATS, exports.pictures(3))
    with pytest.raises(UserError, match="image tokens.*images"):
        theirs.model(**{**inputs, "scale_factors": 2 * inputs.scale_factors})
    del inputs["image_sizes"]
    with pytest.raises(UserError, match="tiles came with 0 image_sizes"):
        theirs.model(**inputs)


def test_engines_learn_tokens_and_tiles_ahead_of_the_images(prism):
    """vLLM asks with (height, width), and splits each output by the number of tiles."""
    _, _, theirs = prism
    images = exports.pictures(3)
    sizes = [(image.height, image.width) for image in images]
    for options in ({}, {"scale_factor": 1}):
        told = theirs.processor._get_num_multimodal_tokens(image_sizes=sizes, **options)
        inputs = theirs.inputs([[("Which?", 3, None)]], images, **options)
        assert sum(told["num_image_tokens"]) == (inputs.input_ids == theirs.processor.image_token_id).sum()
        for name in ("pixel_values", "image_sizes", "scale_factors"):
            assert len(inputs[name]) == sum(told["num_image_patches"])
    assert len(set(told["num_image_patches"])) > 1


def test_no_linear_map_of_the_projector_is_one_that_engines_replace(prism):
    _, _, theirs = prism
    parts = list(theirs.model.model.multi_modal_projector.modules())
    assert not [part for part in parts if isinstance(part, torch.nn.Linear)]


@pytest.mark.transformers
def test_it_learns_with_gradient_checkpointing_and_a_frozen_tower(prism):
    _, _, theirs = prism
    model = copy.deepcopy(theirs.model).train()
    model.model.vision_tower.requires_grad_(False)
    model.gradient_checkpointing_enable()
    inputs = theirs.inputs(CHATS, exports.pictures(3))
    loss = model(**inputs, labels=inputs.input_ids).loss
    loss.backward()
    projector = model.model.multi_modal_projector
    assert all(parameter.grad is not None for parameter in projector.parameters())
    assert model.get_input_embeddings().weight.grad is not None


@pytest.mark.transformers
def test_peft_adapts_it_and_a_compiled_model_gives_its_logits(prism):
    from peft import LoraConfig, get_peft_model

    _, _, theirs = prism
    inputs = theirs.inputs(CHATS, exports.pictures(3))
    tuned = get_peft_model(copy.deepcopy(theirs.model), LoraConfig(target_modules="all-linear"))
    assert not [name for name, _ in tuned.named_parameters() if "projector" in name and "lora" in name]
    tuned(**inputs, labels=inputs.input_ids).loss.backward()
    compiled = torch.compile(theirs.model, backend="eager")
    with torch.no_grad():
        expected, logits = theirs.model(**inputs).logits, compiled(**inputs).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
