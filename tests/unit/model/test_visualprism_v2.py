"""VisualPrism v2: its plain function, the initial effect of its residuals, and its greatest cost."""

import math

import pytest
import pywt
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from llava.model.builder import load_pretrained_model
from llava.model.multimodal_projector.tokenpacker import TokenPacker
from llava.model.multimodal_projector.visualprism_v2 import (
    VisualPrismV2,
    VisualPrismV2Options,
    cosine_basis,
)

WIDTH, LLM_WIDTH, LEVELS = 16, 24, 3


def make(**options) -> VisualPrismV2:
    """Weights far from their initial values, so that every part changes the output."""
    torch.manual_seed(0)
    options = VisualPrismV2Options(**{"visualprism_shortcut": True, **options})
    module = VisualPrismV2(WIDTH, LLM_WIDTH, 2, LEVELS, num_heads=2, options=options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


def features(grid: int = 12, batch: int = 2, width: int = WIDTH, levels: int = LEVELS):
    return torch.randn(batch, grid**2, width), torch.randn(batch, grid**2, levels * width)


def subbands(path, maps: torch.Tensor, side: int) -> torch.Tensor:
    """float[1, C, G, G] to float[side*side, 4*C]: Haar's sub-bands from PyWavelets."""
    low, (horizontal, vertical, diagonal) = pywt.dwt2(
        maps.detach().double().numpy(), "haar", mode="periodization"
    )
    parts = []
    for gain, band in zip(path.subband_scale, (low, vertical, horizontal, diagonal), strict=True):
        filtered = F.gelu(path.subband_bn(path.subband_conv(torch.from_numpy(band).float())))
        parts.append(gain * F.adaptive_avg_pool2d(filtered, side))
    return torch.cat(parts, dim=1).flatten(2)[0].T


def standard(level: torch.Tensor) -> torch.Tensor:
    centred = level - level.mean(dim=1, keepdim=True)
    return centred / (centred.square().mean(dim=1, keepdim=True) + 1e-6).sqrt()


def plain(module: VisualPrismV2, x: torch.Tensor, x_multi: torch.Tensor, s: int) -> torch.Tensor:
    """The same function for one image, region by region, with torch's own attention module.

    Args:
        x, x_multi: float[N, C] and float[N, L*C].
    """
    grid = math.isqrt(len(x))
    if module.norms_input:
        x, *levels = (standard(part) for part in (x, *x_multi.chunk(LEVELS, dim=1)))
        x_multi = torch.cat(levels, dim=1)
    maps = x.T.reshape(1, -1, grid, grid)

    def sampled(part):
        small = F.interpolate(part, (grid // s, grid // s), mode="bilinear", align_corners=False)
        return small.flatten(2)[0].T

    local = [F.gelu(norm(conv(maps))) for conv, norm, _ in module.q_local]
    paths = [
        sampled(F.linear(x, module.q_identity.weight, module.q_identity.bias).T.reshape(1, -1, grid, grid)),
        F.linear(sampled(torch.cat(local, dim=1)), module.q_local_proj.weight, module.q_local_proj.bias),
        module.q_wavelet_proj(subbands(module.q_wavelet, maps, grid // s)),
    ]
    shares = module.q_fusion_weights.softmax(dim=0)
    query = module.ln_q_1(
        module.q_proj_1(sum(share * path for share, path in zip(shares, paths, strict=True)))
    )

    def with_branches(branches, part):
        maps = part.T.reshape(1, -1, grid, grid)
        local = F.gelu(branches.norm(branches.conv(maps)))
        gate = branches.gate.excite(maps.mean(dim=(2, 3), keepdim=True)).sigmoid()
        gains = branches.local_gain.view(-1, 1, 1), branches.global_gain.view(-1, 1, 1)
        return (maps + gains[0] * local + gains[1] * gate * maps).flatten(2)[0].T

    key = module.ln_k_1(with_branches(module.k_branches, F.gelu(module.k_mix[0](x_multi))))
    value = module.ln_v_1(with_branches(module.v_branches, F.gelu(module.v_mix[0](x_multi))))
    attention = torch.nn.MultiheadAttention(WIDTH, 2, batch_first=True)
    attention.load_state_dict(module.clip_attn.state_dict())
    tokens = []
    for row in range(grid // s):
        for column in range(grid // s):
            inside = [(row * s + i) * grid + column * s + j for i in range(s) for j in range(s)]
            gains = torch.ones(s * s, WIDTH)
            for place in range(s * s):
                i, j = divmod(place, s)
                for a in range(4):
                    for b in range(4):
                        wave = math.cos(math.pi * a * (i + 0.5) / s) * math.cos(math.pi * b * (j + 0.5) / s)
                        gains[place] += wave * module.v_positions.weight[4 * a + b]
            asked = query[row * (grid // s) + column].view(1, 1, -1)
            gathered = attention(asked, key[inside][None], value[inside][None] * gains, need_weights=False)[0]
            tokens.append(module.mlp(gathered + module.shortcut_gain * asked).flatten())
    return torch.stack(tokens)


@pytest.mark.slow
@pytest.mark.parametrize("norms_input", [True, False])
@pytest.mark.parametrize("s", [1, 2, 3, 4])
@torch.no_grad()
def test_agreement_with_the_plain_form(s, norms_input):
    module, (x, x_multi) = make(), features()
    module.norms_input = norms_input
    expected = torch.stack([plain(module, a, b, s) for a, b in zip(x, x_multi, strict=True)])
    given = module((x, x_multi), scale_factor=s)
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@torch.no_grad()
def test_residuals_start_at_zero_and_gains_at_one():
    torch.manual_seed(0)
    module = VisualPrismV2(
        WIDTH, LLM_WIDTH, 2, LEVELS, options=VisualPrismV2Options(visualprism_shortcut=True)
    ).eval()
    inputs = features()
    expected = module(inputs)
    module.k_branches = module.v_branches = module.v_positions = module.shortcut_gain = None
    assert torch.equal(module(inputs), expected)


@torch.no_grad()
def test_training_and_evaluation_and_any_batch_give_one_image_the_same_tokens():
    module, (x, x_multi) = make().train(), features(batch=3)
    together = module((x, x_multi))
    torch.testing.assert_close(module.eval()((x[:1], x_multi[:1])), together[:1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("s", [2, 3, 4])
def test_its_work_stays_below_tokenpackers(s):
    """For CLIP-L/336 and a language model of width 4096, on the meta device."""
    flops = {}
    for kind in (VisualPrismV2, TokenPacker):
        with torch.device("meta"), torch.no_grad():
            module = kind(1024, 4096, s).eval()
            inputs = features(24, 1, 1024, 4)
            module(inputs)  # the evaluation form is made before the count
            with FlopCounterMode(display=False) as count:
                module(inputs)
        flops[kind] = count.get_total_flops()
    assert flops[VisualPrismV2] <= flops[TokenPacker]


@given(s=st.integers(1, 4))
@settings(max_examples=4, deadline=None)
def test_cosines_tell_all_places_of_a_region_apart(s):
    basis = cosine_basis(s, torch.device("cpu"))
    assert basis.shape == (s * s, 16)
    assert torch.linalg.matrix_rank(basis) == s * s


SWITCHED = {
    "visualprism_paths": "identity,wavelet",
    "visualprism_hkve": False,
    "visualprism_wavelet": "db2",
    "mm_projector_input_norm": False,
    "visualprism_positions": False,
    "visualprism_shortcut": True,
}


def test_switches_come_back_from_config_json(tmp_path, bpe_tokenizer):
    model = tiny.build(tmp_path, mm_projector_type="visualprism_v2", **SWITCHED)
    model.save_pretrained(tmp_path / "saved")
    bpe_tokenizer.save_pretrained(tmp_path / "saved")
    projector = load_pretrained_model(str(tmp_path / "saved"))[1].get_projector()
    assert isinstance(projector, VisualPrismV2)
    assert projector.paths == ("identity", "wavelet")
    assert projector.q_wavelet.wavelet.name == "db2"
    assert not projector.norms_input
    assert projector.k_branches is projector.v_branches is projector.v_positions is None
    assert projector.shortcut_gain is not None
    alone = tiny.build(tmp_path, mm_projector_type="visualprism_v2", visualprism_tpqp=False)
    assert alone.get_projector().paths == ("identity",)


def test_its_gains_of_sub_bands_learn():
    module = make().train()
    module(features()).square().sum().backward()
    assert module.q_wavelet.subband_scale.grad.abs().min() > 0


@torch.no_grad()
def test_a_levels_size_does_not_count():
    module, (x, x_multi) = make(), features()
    sizes = torch.tensor([0.1, 1.0, 10.0]).repeat_interleave(WIDTH)
    torch.testing.assert_close(module((3 * x, x_multi * sizes)), module((x, x_multi)), atol=1e-3, rtol=1e-3)
