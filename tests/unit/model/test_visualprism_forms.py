"""VisualPrism's evaluation form is always up to date and saves work; every option has its effect."""

import copy
from itertools import combinations

import pytest
import pywt
import tiny
import torch
from torch.utils.flop_counter import FlopCounterMode

from llava.benchmark.plain_visualprism import PlainVisualPrism
from llava.model.builder import load_pretrained_model
from llava.model.multimodal_projector.base import downsample
from llava.model.multimodal_projector.folding import product
from llava.model.multimodal_projector.norms import NORMS
from llava.model.multimodal_projector.triple_path import PATHS, parse_paths
from llava.model.multimodal_projector.visualprism import VisualPrism, VisualPrismOptions
from llava.model.multimodal_projector.wavelet import Wavelet, taps_of

MAX_DIFFERENCE = 1e-5


def make(**options) -> VisualPrism:
    return VisualPrism(16, 24, 2, options=VisualPrismOptions(**options))


def features(grid=12, width=16, levels=4, batch=2, dtype=torch.float32):
    patches = grid * grid
    return torch.randn(batch, patches, width, dtype=dtype), torch.randn(
        batch, patches, levels * width, dtype=dtype
    )


def trained(module):
    """Trains a few steps, so that running statistics, gains and biases change."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        module.train()(features()).square().mean().backward()
        optimizer.step()
    return module


def plain(module, inputs, s=2):
    """The same weights in the plain form."""
    twin = copy.copy(module)
    twin.__class__ = PlainVisualPrism
    with torch.no_grad():
        return twin(inputs, s)


@torch.no_grad()
def assert_current(module, inputs):
    torch.testing.assert_close(module(inputs), plain(module, inputs), atol=MAX_DIFFERENCE, rtol=1e-4)


def test_the_folded_form_follows_every_change_of_weights():
    module = trained(VisualPrism(16, 24, 2)).eval()
    other = trained(VisualPrism(16, 24, 2)).state_dict()
    inputs = features()
    assert_current(module, inputs)
    module.load_state_dict(other)
    assert_current(module, inputs)
    with torch.no_grad():
        module.q_local.fusion[1].running_var.mul_(2)
    assert_current(module, inputs)
    module.mlp[0].weight = torch.nn.Parameter(torch.randn_like(module.mlp[0].weight))
    assert_current(module, inputs)
    trained(module).eval()
    assert_current(module, inputs)
    module.train()
    module.q_proj_1.weight.data.mul_(
        3
    )  # the tensor does not record this change, but the change of mode is noticed
    module.eval()
    assert_current(module, inputs)
    module.double().float()
    assert_current(module, inputs)
    assert_current(copy.deepcopy(module), inputs)


def test_the_folded_form_is_made_once_and_saved_nowhere():
    module = trained(VisualPrism(16, 24, 2)).eval()
    names = set(module.state_dict())
    with torch.no_grad():
        module(features())
        first = module.folded()
        module(features(), scale_factor=3)
    assert module.folded() is first
    assert set(module.state_dict()) == names


def test_weights_still_get_gradients_in_evaluation_mode():
    module = trained(VisualPrism(16, 24, 2)).eval()
    module.zero_grad()
    module(features()).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_inputs_get_the_same_gradients_through_the_folded_form():
    module = trained(VisualPrism(16, 24, 2)).eval()
    x, x_multi = (part.requires_grad_() for part in features())
    module((x, x_multi)).square().sum().backward()
    expected = x.grad.clone(), x_multi.grad.clone()
    x.grad = x_multi.grad = None
    module.requires_grad_(False)
    assert module.folded_form_serves()
    module((x, x_multi)).square().sum().backward()
    torch.testing.assert_close((x.grad, x_multi.grad), expected, atol=1e-5, rtol=1e-3)


def test_a_form_made_in_inference_mode_still_passes_gradients_to_its_inputs():
    module = trained(VisualPrism(16, 24, 2)).eval().requires_grad_(False)
    with torch.inference_mode():
        module(features())
    x, x_multi = features()
    module((x.requires_grad_(), x_multi)).sum().backward()
    assert x.grad.abs().max() > 0


@pytest.mark.slow
def test_agreement_with_the_plain_form_at_clip_l_sizes():
    torch.manual_seed(0)
    module = VisualPrism(1024, 1024, 2)
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 2)
    module.eval()
    inputs = features(24, 1024, batch=1)
    scales = (2, 3, 4)
    with torch.no_grad():
        expected = {s: plain(module, inputs, s) for s in scales}
        for s in scales:
            assert (module(inputs, s) - expected[s]).abs().max() < 1e-5
        module, inputs = module.bfloat16(), tuple(part.bfloat16() for part in inputs)
        for s in scales:
            half = module(inputs, s).float()
            assert (half - expected[s]).norm() / expected[s].norm() < 2e-2


def grouped_conv_backward(grad_out, x, w, _bias, _s, _p, _d, transposed, _op, _groups, mask, **_):
    """torch counts a depthwise convolution's backward as if it were dense."""
    positions = (x if transposed else grad_out)[0] * (x if transposed else grad_out)[2:].numel()
    return 2 * positions * w.numel() * (mask[0] + mask[1])


def gflop(module, s, backward=False):
    """GFLOP for 4 CLIP-L/336 images."""
    with torch.device("meta"):
        inputs = features(24, 1024, batch=4)
    counter = {torch.ops.aten.convolution_backward: grouped_conv_backward}
    with torch.set_grad_enabled(backward):
        module(inputs, s)  # the evaluation form is made before the count
        with FlopCounterMode(display=False, custom_mapping=counter) as count:
            output = module(inputs, s)
            if backward:
                output.sum().backward()
    return count.get_total_flops() / 1e9


@pytest.mark.slow
@pytest.mark.parametrize(("s", "most", "share"), [(2, 68.5, 0.86), (4, 43.5, 0.75)])
def test_work_stays_within_its_budget(s, most, share):
    with torch.device("meta"):
        module, plain_form = (kind(1024, 4096, s) for kind in (VisualPrism, PlainVisualPrism))
    assert (
        0.9 * most < gflop(module.eval(), s) <= most
    )  # a lower count would mean that the counter misses work
    assert gflop(module.train(), s, backward=True) <= share * gflop(plain_form.train(), s, backward=True)


@pytest.mark.parametrize("s", [1, 2, 3, 4, 5, 6, 7])
def test_the_folded_form_is_exact_at_any_scale(s):
    module = trained(VisualPrism(16, 24, 2)).eval()
    inputs = features(grid=2 * s)
    with torch.no_grad():
        torch.testing.assert_close(
            module(inputs, s), plain(module, inputs, s), atol=MAX_DIFFERENCE, rtol=1e-4
        )


@pytest.mark.parametrize("s", [2, 3, 4])
def test_training_gradients_are_those_of_the_plain_form(s):
    module = VisualPrism(16, 24, s)
    twin = PlainVisualPrism(16, 24, s)
    twin.load_state_dict(module.state_dict())
    inputs = features()
    for kind in (module, twin):
        kind.train()(inputs).square().sum().backward()
    for (name, ours), theirs in zip(module.named_parameters(), twin.parameters(), strict=True):
        scale = theirs.grad.norm().clamp(min=1e-3)
        assert (ours.grad - theirs.grad).norm() / scale < 1e-4, name


@pytest.mark.parametrize("s", [1, 2, 3, 4, 5, 6])
def test_downsampling_is_torchs_bilinear(s):
    maps = torch.randn(2, 3, 6 * s, 6 * s)
    expected = torch.nn.functional.interpolate(maps, size=(6, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(downsample(maps, s), expected)


SUBSETS = [subset for size in (1, 2, 3) for subset in combinations(PATHS, size)]


@pytest.mark.parametrize("hkve", [True, False])
@pytest.mark.parametrize("paths", SUBSETS)
def test_every_ablation_trains_and_its_evaluation_form_is_exact(paths, hkve):
    module = trained(make(visualprism_paths=",".join(paths), visualprism_hkve=hkve))
    module.zero_grad()
    module(features()).square().mean().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert_current(module.eval(), features())
    assert module.q_fusion_weights.shape == (len(paths),)
    assert hasattr(module, "q_freq") == ("wavelet" in paths)


def test_path_names_are_parsed_and_refused_by_name():
    assert parse_paths("wavelet, identity") == ("identity", "wavelet")
    assert make(visualprism_paths="wavelet,identity").paths == ("identity", "wavelet")
    for text in ("", "identity,identity", "fourier"):
        with pytest.raises(ValueError, match="--visualprism_paths.*identity, local, wavelet"):
            parse_paths(text)


@pytest.mark.parametrize("side", [8, 14, 24])
@pytest.mark.parametrize(
    "name", ["haar", "db2", "db7", "sym5", "coif2", "bior2.2", "bior6.8", "rbio3.1", "dmey"]
)
def test_analysis_and_synthesis_are_pywavelets_periodised(name, side):
    assert taps_of(name) == tuple(pywt.Wavelet(name).filter_bank)
    maps = torch.randn(2, 3, side, side)
    wavelet = Wavelet(name)
    bands = wavelet.analyse(maps)
    low, (horizontal, vertical, diagonal) = pywt.dwt2(maps.numpy(), name, mode="periodization")
    for band, expected in zip(bands.unbind(2), (low, vertical, horizontal, diagonal), strict=True):
        torch.testing.assert_close(band, torch.from_numpy(expected), atol=1e-5, rtol=1e-4)
    inverse = pywt.idwt2((low, (horizontal, vertical, diagonal)), name, mode="periodization")
    torch.testing.assert_close(2 * wavelet.synthesise(bands), torch.from_numpy(inverse), atol=1e-4, rtol=1e-4)


def test_unknown_wavelets_and_norms_are_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"'morl'.*haar, db"):
        Wavelet("morl")
    with pytest.raises(ValueError, match="--visualprism_norm.*batch, sync_batch, layer"):
        make(visualprism_norm="group")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("wavelet", ["haar", "db3"])
def test_norms_and_wavelets_combine(norm, wavelet):
    module = trained(make(visualprism_norm=norm, visualprism_wavelet=wavelet)).eval()
    assert_current(module, features())


def test_layer_norm_gives_each_image_the_same_tokens_in_any_batch_while_training():
    module = make(visualprism_norm="layer").train()
    x, x_multi = features(batch=3)
    torch.testing.assert_close(module((x, x_multi))[:1], module((x[:1], x_multi[:1])), atol=1e-5, rtol=1e-4)


SWITCHED = {
    "visualprism_paths": "identity,wavelet",
    "visualprism_hkve": False,
    "visualprism_wavelet": "db2",
    "visualprism_norm": "layer",
}


def test_switches_come_back_from_config_json(tmp_path, bpe_tokenizer):
    model = tiny.build(tmp_path, **SWITCHED)
    model.save_pretrained(tmp_path / "saved")
    bpe_tokenizer.save_pretrained(tmp_path / "saved")
    loaded = load_pretrained_model(str(tmp_path / "saved"))[1]
    for name, value in SWITCHED.items():
        assert getattr(loaded.config, name) == value
    projector = loaded.get_projector()
    assert projector.paths == ("identity", "wavelet")
    assert projector.q_freq[0].wavelet.name == "db2"
    identity_alone = tiny.build(tmp_path, visualprism_tpqp=False)
    assert identity_alone.get_projector().paths == ("identity",)


def test_one_checkpoint_three_budgets(tmp_path):
    model = tiny.build(tmp_path)
    ids, images = torch.tensor([[1, -200, 6]]), torch.randn(1, 3, 56, 56)
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert [model.tokens_per_image(s) for s in (1, 2, 4)] == [16, 4, 1]
    answers = {s: model.generate(ids, images=images, scale_factor=s, **options) for s in (1, 2, 4)}
    for s, answer in answers.items():
        model.config.scale_factor = s
        assert model.num_visual_tokens == (4 // s) ** 2
        assert torch.equal(model.generate(ids, images=images, **options), answer)
        assert model(input_ids=ids, images=images).logits.shape[1] == 2 + (4 // s) ** 2
    with pytest.raises(ValueError, match="--scale_factor.*4x4.*3"):
        model.generate(ids, images=images, scale_factor=3, **options)


def test_a_budget_for_a_projector_that_does_not_compress_is_refused(tmp_path):
    model = tiny.build(tmp_path, mm_projector_type="linear")
    with pytest.raises(ValueError, match="LinearProjector.*compress"):
        model.generate(torch.tensor([[1, -200]]), images=torch.randn(1, 3, 56, 56), scale_factor=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_weights_are_folded_in_float32_at_least_and_rounded_once(dtype):
    left, right = (torch.randn(300, 300).to(dtype) for _ in range(2))
    exact = left.double() @ right.double()
    error = (product(left, right).double() - exact).abs() / exact.abs().clamp(min=1)
    assert error.max() < 1.01 * torch.finfo(dtype).eps + (dtype == torch.float32) * 1e-4
