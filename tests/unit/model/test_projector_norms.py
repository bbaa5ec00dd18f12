"""The norms that every projector can begin and end with: what they compute, what is saved and exported."""

import copy

import exports
import pytest
import tiny
import torch
import torch.nn.functional as F

from llava.errors import UserError
from llava.export.back import restore
from llava.export.folder import export
from llava.model.builder import load_pretrained_model
from llava.model.compatibility import fixed_by_weights
from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_projector.builder import PROJECTORS, VisionFields, build_projector
from llava.model.multimodal_projector.norms import OutputNorm
from llava.train.saving import save_projector

WIDTH, LEVELS, GRID = 16, 3, 4
NAMES = [*PROJECTORS, "mlp2x_gelu"]
CHATS = [[("What is it?", 1, None)]]


def make(name, **options):
    torch.manual_seed(0)
    fields = VisionFields(
        mm_projector_type=name,
        mm_hidden_size=WIDTH,
        mm_vision_levels=list(range(LEVELS)),
        mm_vision_config={"image_size": GRID, "patch_size": 1},
        num_visual_tokens=5,
        **options,
    )
    return build_projector(fields, WIDTH)


def features(batch=2):
    shape = batch, GRID * GRID
    parts = torch.randn(*shape, WIDTH), torch.randn(*shape, LEVELS * WIDTH), torch.rand(shape)
    return VisionFeatures(*parts, torch.randn(*shape, 4, WIDTH // 4))


def each_layer_normed(given: VisionFeatures) -> VisionFeatures:
    """By hand; for a projector that is then not to norm them again."""
    layers = given.levels.split(WIDTH, dim=-1)
    selected, *levels = (F.layer_norm(layer, (WIDTH,), eps=1e-6) for layer in (given.selected, *layers))
    return given._replace(selected=selected, levels=torch.cat(levels, dim=-1))


def distance(given: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative: the outputs of some new projectors are small."""
    return ((given - expected).norm() / expected.norm()).item()


def rms(values: torch.Tensor) -> float:
    return values.float().square().mean().sqrt().item()


@pytest.mark.parametrize("name", NAMES)
def test_new_tokens_are_as_large_as_the_words_and_every_weight_learns(name):
    plain, normed, inputs = make(name), make(name, mm_projector_norm=True), features()
    words = 0.02 * torch.randn(50, WIDTH) + 0.01
    normed.scale_to(words)
    tokens = normed(inputs)
    expected = torch.full(tokens.shape[:2], rms(words))
    torch.testing.assert_close(tokens.square().mean(dim=-1).sqrt(), expected, rtol=0.01, atol=0)
    added = {"output_norm.weight", "output_norm.scale"}
    assert set(normed.state_dict()) - set(plain.state_dict()) == added
    assert torch.equal(tokens, normed.output_norm(plain(inputs)))  # the weights of both are drawn alike
    (tokens * torch.randn_like(tokens)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in normed.parameters())
    assert normed.output_norm.weight.grad.abs().min() > 0


@pytest.mark.parametrize("name", ["visualprism", "visualprism_v2", "tokenpacker"])
@torch.no_grad()
def test_evaluation_forms_keep_the_norm(name):
    module, inputs = make(name, mm_projector_norm=True), features()
    module.output_norm.weight.add_(torch.randn(WIDTH))
    trained = module.eval()(inputs)
    module.output_norm = None
    bare = module(inputs)
    expected = F.rms_norm(bare, (WIDTH,), eps=1e-12)
    assert not torch.allclose(trained, expected, atol=0.1)
    module.output_norm = make(name, mm_projector_norm=True).output_norm
    torch.testing.assert_close(module(inputs), expected)


def test_the_size_of_a_token_before_the_norm_does_not_count():
    norm, tokens = OutputNorm(WIDTH), torch.randn(2, 3, WIDTH)
    torch.testing.assert_close(norm(100 * tokens), norm(tokens))
    assert norm(tokens.bfloat16()).dtype == torch.bfloat16
    assert norm(torch.zeros(1, 1, WIDTH)).abs().max() == 0


def test_a_new_projector_has_the_scale_of_its_own_language_model(tmp_path):
    model = tiny.build(tmp_path, mm_projector_type="tokenpacker", mm_projector_norm=True)
    assert rms(model.get_input_embeddings().weight) == pytest.approx(model.get_projector().output_norm.scale)
    tokens = model.encode_images(torch.randn(1, 3, 56, 56))
    assert rms(tokens) == pytest.approx(rms(model.get_input_embeddings().weight), rel=0.01)
    assert tiny.build(tmp_path, mm_projector_type="tokenpacker").get_projector().output_norm is None


@pytest.mark.parametrize("name", ["linear", "tokenpacker"])
def test_stage_1_keeps_the_norm_and_no_other_setting_takes_its_weights(tmp_path, bpe_tokenizer, name):
    model = tiny.build(tmp_path, mm_projector_type=name, mm_projector_norm=True)
    model.get_projector().output_norm.weight.data.mul_(1.5)
    bpe_tokenizer.save_pretrained(tmp_path / "language_model")
    save_projector(model, tmp_path / "stage1")
    base = str(tmp_path / "language_model")
    loaded = load_pretrained_model(str(tmp_path / "stage1"), base)[1].get_projector().state_dict()
    own = model.get_projector().state_dict()
    assert loaded.keys() == own.keys()
    assert all(torch.equal(loaded[key], own[key]) for key in own)
    config = tmp_path / "stage1" / "config.json"
    config.write_text(config.read_text().replace('"mm_projector_norm": true', '"mm_projector_norm": false'))
    with pytest.raises(UserError, match=r"unexpected output_norm\.weight"):
        load_pretrained_model(str(tmp_path / "stage1"), base)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_every_layer_enters_normed_only_if_asked_for(name, training):
    """visualprism_v2 alone is asked by default."""
    inputs, by_default = features(), name == "visualprism_v2"
    plain, normed = (make(name, mm_projector_input_norm=norm).train(training) for norm in (False, True))
    assert plain.state_dict().keys() == normed.state_dict().keys()
    expected = plain(each_layer_normed(inputs))
    assert distance(normed(inputs), expected) < 1e-5
    sizes = torch.tensor([0.1, 1.0, 10.0]).repeat_interleave(WIDTH)
    by_patch = torch.linspace(1, 3, GRID * GRID)[:, None]
    moved = inputs._replace(selected=by_patch * inputs.selected + 1, levels=sizes * (inputs.levels + 1))
    assert distance(normed(moved), expected) < 2e-3
    assert distance(plain(moved), plain(inputs)) > 0.05
    assert torch.equal(make(name).train(training)(inputs), (normed if by_default else plain)(inputs))


def test_the_norm_of_the_input_is_written_down_and_fixed_by_the_weights(tmp_path):
    for name, norm in (("tokenpacker", False), ("visualprism_v2", True)):
        config = tiny.build(tmp_path, mm_projector_type=name).config
        assert config.mm_projector_input_norm is norm
        other, unsaid, same = (
            VisionFields(mm_projector_type=name, mm_projector_input_norm=value)
            for value in (not norm, None, norm)
        )
        assert fixed_by_weights(unsaid, 24) == fixed_by_weights(same, 24) != fixed_by_weights(other, 24)


@pytest.mark.parametrize("name", ["visualprism", "visualprism_v2"])
def test_what_is_looked_at_is_what_the_queries_and_keys_are_made_of(name):
    module, inputs = make(name, mm_projector_input_norm=True).eval(), features()
    bare = make(name, mm_projector_input_norm=False).eval()
    looked, expected = module.inspect(inputs, [2]), bare.inspect(each_layer_normed(inputs), [2])
    torch.testing.assert_close(looked.region_attention[2], expected.region_attention[2])
    torch.testing.assert_close(looked.path_norms, expected.path_norms)
    torch.testing.assert_close(
        looked.subband_energy, bare.inspect(inputs, []).subband_energy
    )  # of the tower's


@pytest.mark.slow
@pytest.mark.transformers
@pytest.mark.parametrize("name", ["visualprism_v2", "visualprism", "linear", "mlp2x_gelu", "identity"])
def test_an_exported_model_has_both_norms(tmp_path, bpe_tokenizer, name):
    options = {"mm_projector_type": name, "mm_projector_norm": True, "mm_projector_input_norm": True}
    if name == "identity":
        options["decoder"] = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    folder = exports.save_whole(tmp_path / "ours", copy.deepcopy(bpe_tokenizer), **options)
    export(str(folder), tmp_path / "theirs")
    ours, theirs = exports.Ours(folder), exports.Theirs(tmp_path / "theirs")
    for model in (ours.model, theirs.model.model):
        assert model.get_projector().norms_input
        assert model.get_projector().output_norm is not None
    assert type(theirs.model).__name__ == "VisualPrismForConditionalGeneration"
    exports.assert_same_logits(ours, theirs, CHATS, exports.pictures(1))
    restore(str(tmp_path / "theirs"), tmp_path / "back")
    back = exports.Ours(tmp_path / "back").model.get_projector().state_dict()
    own = ours.model.get_projector().state_dict()
    assert back.keys() == own.keys()
    assert all(torch.equal(back[key], own[key]) for key in own)


@pytest.mark.parametrize(
    ("earlier", "now", "norms"), [(False, None, False), (True, None, True), (False, True, True)]
)
def test_folders_of_version_0_1_keep_their_input_norm(earlier, now, norms):
    fields = VisionFields(mm_projector_type="visualprism_v2", mm_projector_input_norm=now)
    fields.visualprism_level_norm = earlier
    assert PROJECTORS["visualprism_v2"].options(fields).mm_projector_input_norm is norms
    other = VisionFields(mm_projector_type="tokenpacker")
    other.visualprism_level_norm = True  # every folder of that version has the key
    assert PROJECTORS["tokenpacker"].options(other).mm_projector_input_norm is False
