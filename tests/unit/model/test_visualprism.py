"""VisualPrism: it equals the recorded published form, and tests/reference.py for all inputs."""

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from llava.model.multimodal_projector.visualprism import VisualPrism
from llava.model.multimodal_projector.wavelet import Wavelet

MAX_DIFFERENCE = 1e-5


def features(num_patches, width=16, levels=4, batch=2):
    return torch.randn(batch, num_patches, width), torch.randn(batch, num_patches, levels * width)


def disturbed(module):
    """Changes running statistics, gains and biases, so that a form that ignores one gives other results."""
    for name, tensor in module.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 2)
        elif "wavelet" not in name and "subband_scale" not in name and tensor.is_floating_point():
            tensor.add_(0.1 * torch.randn_like(tensor))
    return module.eval()


def golden_module(golden, s):
    recorded = load_file(golden / f"visualprism_s{s}.safetensors")
    module = VisualPrism(32, 48, s, num_heads=4)
    module.load_state_dict(
        {k.removeprefix("state."): v for k, v in recorded.items() if k.startswith("state.")}
    )
    return module, recorded


@pytest.mark.parametrize("s", [2, 3, 4])
def test_evaluation_matches_the_recorded_output(golden, s):
    module, recorded = golden_module(golden, s)
    with torch.no_grad():
        output = module.eval()((recorded["x"], recorded["x_multi"]))
    torch.testing.assert_close(output, recorded["out_eval"], atol=MAX_DIFFERENCE, rtol=0)


@pytest.mark.parametrize("s", [2, 3, 4])
def test_a_training_step_matches_output_gradients_and_running_statistics(golden, s):
    module, recorded = golden_module(golden, s)
    x, x_multi = recorded["x"].requires_grad_(), recorded["x_multi"].requires_grad_()
    output = module.train()((x, x_multi))
    torch.testing.assert_close(output, recorded["out_train"], atol=MAX_DIFFERENCE, rtol=0)
    (output * recorded["cotangent"]).sum().backward()
    torch.testing.assert_close(x.grad, recorded["grad_x"], atol=MAX_DIFFERENCE, rtol=1e-4)
    torch.testing.assert_close(x_multi.grad, recorded["grad_x_multi"], atol=MAX_DIFFERENCE, rtol=1e-4)
    for name, parameter in module.named_parameters():
        expected = recorded[f"grad.{name}"]
        error = (parameter.grad - expected).norm() / expected.norm().clamp(min=1.0)
        assert error < 1e-4, name
    state = module.state_dict()
    for name, expected in recorded.items():
        if name.startswith("after_train."):
            torch.testing.assert_close(state[name.removeprefix("after_train.")], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("s", [2, 3, 4])
def test_the_plain_reference_form_matches_the_recorded_output(golden, s):
    module, recorded = golden_module(golden, s)
    output = reference.visualprism(module.eval(), recorded["x"], recorded["x_multi"], s)
    torch.testing.assert_close(output, recorded["out_eval"], atol=MAX_DIFFERENCE, rtol=0)


@settings(max_examples=20, deadline=None)
@given(
    grid=st.sampled_from([4, 6, 8, 12]),
    s=st.sampled_from([1, 2, 3, 4]),
    levels=st.integers(1, 4),
    num_heads=st.sampled_from([1, 2, 4]),
)
def test_evaluation_is_the_plain_form_for_any_grid_scale_levels_and_heads(grid, s, levels, num_heads):
    if grid % s:
        return
    module = disturbed(VisualPrism(16, 24, s, num_levels=levels, num_heads=num_heads))
    x, x_multi = features(grid * grid, levels=levels)
    with torch.no_grad():
        output = module((x, x_multi))
    assert output.shape == (2, (grid // s) ** 2, 24)
    torch.testing.assert_close(
        output, reference.visualprism(module, x, x_multi, s), atol=MAX_DIFFERENCE, rtol=1e-4
    )


def test_a_token_changes_with_its_own_region_only_through_keys_and_values():
    """Without gates, a value outside a region and the reach of its convolutions cannot change its token."""
    module = disturbed(VisualPrism(16, 24, 2))
    for gate in (module.k_global, module.v_global):
        torch.nn.init.zeros_(gate.excite[2].weight)  # a constant gate does not depend on the whole image
    x, x_multi = features(16 * 16, batch=1)
    changed = x_multi.clone()
    changed[:, -1] += 1.0  # bottom right patch
    with torch.no_grad():
        moved = (module((x, changed)) - module((x, x_multi))).abs().amax(dim=-1).view(8, 8)
    assert moved[-1, -1] > 0
    assert moved[:5, :5].max() == 0


def test_one_module_serves_every_scale_and_grid():
    module = disturbed(VisualPrism(16, 24, 2))
    x, x_multi = features(144)
    with torch.no_grad():
        for s in (2, 3, 4):
            expected = reference.visualprism(module, x, x_multi, s)
            torch.testing.assert_close(
                module((x, x_multi), scale_factor=s), expected, atol=MAX_DIFFERENCE, rtol=1e-4
            )
    assert module.output_grid(24) == 12


def test_initial_weights_are_the_published_ones():
    module = VisualPrism(256, 256, 2)
    assert abs(module.kv_down_proj.weight.std() - 0.02) < 1e-3
    assert abs(module.k_local.fusion[0].weight.std() - 0.02) < 1e-3
    assert module.kv_down_proj.bias.abs().max() == 0
    bound = (6 / (256 + 3 * 256)) ** 0.5
    assert bound * 0.98 < module.clip_attn.in_proj_weight.abs().max() <= bound
    assert module.q_fusion_weights.softmax(0).tolist() == pytest.approx([1 / 3] * 3)


def test_published_size_at_clip_l_and_vicuna_widths():
    with torch.device("meta"):
        module = VisualPrism(1024, 4096, 2)
    assert round(sum(p.numel() for p in module.parameters()) / 1e6, 2) == 38.98
    assert module.clip_attn.num_heads == 8


def test_analysis_and_synthesis_are_pywavelets_haar():
    maps = torch.randn(2, 3, 8, 8)
    wavelet = Wavelet()
    bands = wavelet.analyse(maps)
    for band, expected in zip(bands.unbind(2), reference.haar(maps), strict=True):
        torch.testing.assert_close(band, expected)
    torch.testing.assert_close(2 * wavelet.synthesise(bands), maps)


def test_bad_grids_and_scales_are_refused_with_the_choices():
    module = VisualPrism(16, 24, 5)
    with pytest.raises(ValueError, match="--scale_factor.*12x12.*5.*1, 2, 3, 4, 6, 12"):
        module(features(144))
    with pytest.raises(ValueError, match="square.*145.*--mm_vision_select_feature"):
        module(features(145), scale_factor=2)
