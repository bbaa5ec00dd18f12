"""Every projector: shapes, gradients, refused inputs, the papers' rules, and its use in a whole model."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.builder import load_pretrained_model
from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_projector.base import FixedScaleCompressor, reset_linear_maps, to_maps, to_tokens
from llava.model.multimodal_projector.builder import PROJECTORS, VisionFields, build_projector
from llava.model.multimodal_projector.pooling import PixelShuffle
from llava.model.multimodal_projector.resampler import Resampler, sincos_positions
from llava.model.multimodal_projector.tokenpacker import TokenPacker
from llava.train.saving import save_projector

WIDTH, LLM_WIDTH, LEVELS = 16, 24, 4
DOCUMENTATION = Path(__file__).parents[3] / "docs" / "projectors.md"
COMPRESSING = sorted(name for name, kind in PROJECTORS.items() if kind.compresses)
FIXED = sorted(name for name in COMPRESSING if issubclass(PROJECTORS[name], FixedScaleCompressor))
ELASTIC = sorted(set(COMPRESSING) - set(FIXED))


def make(name, grid, s):
    torch.manual_seed(0)
    fields = VisionFields(
        mm_projector_type=name,
        mm_hidden_size=WIDTH,
        mm_vision_levels=list(range(LEVELS)),
        mm_vision_config={"image_size": grid * 14, "patch_size": 14},
        scale_factor=s,
    )
    return build_projector(fields, LLM_WIDTH)


def features(grid, batch=2):
    return VisionFeatures(
        torch.randn(batch, grid * grid, WIDTH), torch.randn(batch, grid * grid, LEVELS * WIDTH)
    )


@pytest.mark.parametrize(("grid", "s"), [(4, 2), (6, 3), (8, 4), (8, 2), (9, 3), (5, 1)])
@pytest.mark.parametrize("name", COMPRESSING)
def test_a_step_reaches_every_parameter_and_evaluation_repeats_itself(name, grid, s):
    module, inputs = make(name, grid, s), features(grid)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):  # a gain of zero passes no gradient, so the first step must change it
        optimizer.step()
        optimizer.zero_grad()
        output = module.train()(inputs)
        (output * torch.randn_like(output)).sum().backward()
    assert output.shape == (2, (grid // s) ** 2, LLM_WIDTH)
    assert module.num_tokens(grid * grid) == output.shape[1] == module.output_grid(grid) ** 2
    for parameter_name, parameter in module.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
    dead = {n for n, p in module.named_parameters() if p.grad.abs().max() == 0}
    # In a region of one patch, attention has no choice, and the bias of the keys never has an effect.
    assert s == 1 or dead <= {"k_proj.bias"}, dead
    optimizer.step()
    with torch.no_grad():
        assert torch.equal(module.eval()(inputs), module(inputs))
        alone = [module(VisionFeatures(x[None], levels[None])) for x, levels in zip(*inputs[:2], strict=True)]
        torch.testing.assert_close(torch.cat(alone), module(inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", COMPRESSING)
def test_a_scale_that_does_not_divide_and_a_class_token_are_refused(name):
    if name != "resampler":  # it refuses both earlier: when it is made, or because of its grid
        with pytest.raises(ValueError, match="--scale_factor.*8x8.*3.*1, 2"):
            make(name, 8, 3)(features(8))
    module = make(name, 8, 2)
    x, levels = torch.randn(1, 65, WIDTH), torch.randn(1, 65, LEVELS * WIDTH)
    with pytest.raises(ValueError, match="square.*65.*--mm_vision_select_feature"):
        module(VisionFeatures(x, levels))


@pytest.mark.parametrize("name", ELASTIC)
def test_one_module_serves_every_scale_and_grid(name):
    module = make(name, 12, 2).eval()
    with torch.no_grad():
        for grid in (6, 12):
            for s in (1, 2, 3):
                inputs = features(grid)
                expected = make(name, grid, s)
                expected.load_state_dict(module.state_dict())
                assert module.num_tokens(grid * grid, s) == (grid // s) ** 2
                torch.testing.assert_close(module(inputs, scale_factor=s), expected.eval()(inputs))


@pytest.mark.parametrize("name", FIXED)
def test_weights_made_for_one_scale_refuse_another_however_it_is_asked_for(name):
    module, inputs = make(name, 12, 2), features(12)
    with pytest.raises(ValueError, match="--scale_factor 2,.*3"):
        module(inputs, scale_factor=3)
    with pytest.raises(ValueError, match="--scale_factor 2,.*3"):
        module.num_tokens(144, 3)


# What each projector computes


@pytest.mark.parametrize("s", [2, 3, 4])
def test_tokenpacker_matches_the_recorded_output(golden, s):
    recorded = load_file(golden / f"tokenpacker_s{s}.safetensors")
    module = TokenPacker(32, 48, s, num_heads=4)
    module.load_state_dict(
        {k.removeprefix("state."): v for k, v in recorded.items() if k.startswith("state.")}
    )
    with torch.no_grad():
        output = module.eval()((recorded["x"], recorded["x_multi"]))
    torch.testing.assert_close(output, recorded["out_eval"], atol=1e-5, rtol=0)


def test_tokenpackers_initial_weights_are_those_of_visualprism():
    module = TokenPacker(256, 256, 2)
    assert abs(module.k_proj_1[0].weight.std() - 0.02) < 1e-3
    assert module.k_proj_1[2].bias.abs().max() == 0
    bound = (6 / (256 + 3 * 256)) ** 0.5
    assert bound * 0.98 < module.clip_attn.in_proj_weight.abs().max() <= bound
    assert module.clip_attn.num_heads == 2


def regions_by_hand(x, grid, s):
    """The patches float[B, s*s, C] of each token, found one by one."""
    found = []
    for row in range(grid // s):
        for column in range(grid // s):
            cells = [(row * s + i) * grid + column * s + j for i in range(s) for j in range(s)]
            found.append(x[:, cells])
    return found


def test_avgpool_is_the_mlp_of_each_regions_mean():
    module, inputs = make("avgpool", 6, 3), features(6)
    means = torch.stack([region.mean(dim=1) for region in regions_by_hand(inputs.selected, 6, 3)], dim=1)
    torch.testing.assert_close(module(inputs), module[2](F.gelu(module[0](means))))


def test_pixel_shuffle_lays_a_regions_patches_side_by_side():
    module, inputs = make("pixel_shuffle", 6, 3), features(6)
    stacked = torch.stack([region.flatten(1) for region in regions_by_hand(inputs.selected, 6, 3)], dim=1)
    torch.testing.assert_close(module(inputs), module.mlp(F.layer_norm(stacked, (9 * WIDTH,))))


def test_ldpv2_is_the_papers_order_pooling_after_both_maps():
    module, inputs = make("ldpv2", 6, 2), features(6)
    pooled = F.avg_pool2d(to_maps(module.mlp(inputs.selected)), 2)
    torch.testing.assert_close(module(inputs), to_tokens(pooled + module.peg(pooled)))


def test_cabstractor_is_convolutions_pooling_convolutions():
    module, inputs = make("cabstractor", 6, 2), features(6)
    assert [len(module.before), len(module.after)] == [3, 3]
    maps = to_maps(inputs.selected)
    for block in module.before:
        maps = F.silu(maps + block.residual(maps))
    maps = F.avg_pool2d(maps, 2)
    for block in module.after:
        maps = F.silu(maps + block.residual(maps))
    torch.testing.assert_close(module(inputs), module.readout(to_tokens(maps)))


def test_resampler_is_torchs_attention_of_learnt_queries():
    module, inputs = Resampler(WIDTH, LLM_WIDTH, 2, grid=6, num_heads=2), features(6)
    reset_linear_maps(module)
    attention = torch.nn.MultiheadAttention(LLM_WIDTH, 2, batch_first=True)
    maps = (module.q_proj, module.k_proj, module.v_proj)
    attention.load_state_dict(
        {
            "in_proj_weight": torch.cat([m.weight for m in maps]),
            "in_proj_bias": torch.cat([m.bias for m in maps]),
            "out_proj.weight": module.out_proj.weight,
            "out_proj.bias": module.out_proj.bias,
        }
    )
    queries, keys = module.positions(module.query)
    patches = module.ln_kv(module.kv_proj(inputs.selected))
    query = (module.ln_q(module.query) + queries).expand(2, -1, -1)
    attended, _ = attention(query, patches + keys, patches)
    torch.testing.assert_close(module(inputs), module.proj(module.ln_post(attended)))
    with pytest.raises(ValueError, match="6x6.*8x8"):
        module(features(8))
    with pytest.raises(ValueError, match="--mm_projector_type resampler.*4.*1.*30"):
        Resampler(WIDTH, 30, 2, grid=6)


def test_resampler_positions_tell_rows_from_columns_and_share_one_image():
    positions = sincos_positions(torch.arange(3.0), 16).view(3, 3, 16)
    assert torch.equal(positions[1, :, :8], positions[1, :1, :8].expand(3, -1))
    assert torch.equal(positions[:, 1, 8:], positions[:1, 1, 8:].expand(3, -1))
    assert positions.flatten(0, 1).unique(dim=0).shape[0] == 9
    odd = Resampler(WIDTH, LLM_WIDTH, 3, grid=9)
    queries, keys = odd.positions(odd.query)
    torch.testing.assert_close(keys.view(9, 9, -1)[1::3, 1::3].flatten(0, 1), queries)


# Pruning


def pruning(name, num_visual_tokens):
    torch.manual_seed(0)
    fields = VisionFields(mm_projector_type=name, mm_hidden_size=WIDTH, num_visual_tokens=num_visual_tokens)
    return build_projector(fields, LLM_WIDTH)


def attended_features(num_patches=36, batch=3):
    x = torch.randn(batch, num_patches, WIDTH)
    attention = torch.rand(batch, num_patches).softmax(dim=1)
    return VisionFeatures(x, None, attention, torch.randn(batch, num_patches, 2, 8))


def most_attended(attention, count):
    ranked = sorted(range(len(attention)), key=lambda i: -attention[i].item())
    return sorted(ranked[:count])


def nearest(key, keys, centres):
    return max(centres, key=lambda centre: F.cosine_similarity(key, keys[centre], dim=0).item())


@pytest.mark.parametrize("num_tokens", [1, 4, 13, 32, 36])
def test_visionzip_keeps_the_most_attended_and_averages_the_rest_by_key(num_tokens):
    module, inputs = pruning("visionzip", num_tokens), attended_features()
    pruned = module.prune(inputs)
    assert pruned.shape == (3, num_tokens, WIDTH)
    num_contextual = round(num_tokens * 10 / 64)
    for x, attention, keys, tokens in zip(*(inputs[i] for i in (0, 2, 3)), pruned, strict=True):
        dominant = most_attended(attention, num_tokens - num_contextual)
        expected = [x[i] for i in dominant]
        rest = [i for i in range(36) if i not in dominant]
        centres = [rest[len(rest) * i // num_contextual] for i in range(num_contextual)]
        groups = {centre: [x[centre]] for centre in centres}
        for i in rest if centres else []:
            if i not in centres:
                groups[nearest(keys[i].mean(0), keys.mean(1), centres)].append(x[i])
        expected += [torch.stack(group).mean(0) for group in groups.values()]
        torch.testing.assert_close(tokens, torch.stack(expected))
    torch.testing.assert_close(module(inputs), module[2](F.gelu(module[0](pruned))))


@pytest.mark.parametrize("num_tokens", [1, 5, 20, 36])
def test_prumerge_merges_the_pruned_into_their_nearest_kept_by_attention(num_tokens):
    module, inputs = pruning("prumerge", num_tokens), attended_features()
    pruned = module.prune(inputs)
    for x, attention, keys, tokens in zip(*(inputs[i] for i in (0, 2, 3)), pruned, strict=True):
        kept = most_attended(attention, num_tokens)
        groups = {i: [i] for i in kept}
        for i in set(range(36)) - set(kept):
            groups[nearest(keys[i].flatten(), keys.flatten(1), kept)].append(i)
        expected = [
            sum(attention[i] * x[i] for i in group) / sum(attention[i] for i in group)
            for group in groups.values()
        ]
        torch.testing.assert_close(tokens, torch.stack(expected))
    if num_tokens == 36:
        torch.testing.assert_close(pruned, inputs.selected)


@pytest.mark.parametrize("name", ["visionzip", "prumerge"])
def test_pruning_says_what_it_needs(name):
    for missing in (None, 0):
        with pytest.raises(ValueError, match=f"{name} needs --num_visual_tokens"):
            pruning(name, missing)
    module = pruning(name, 40)
    with pytest.raises(ValueError, match="--num_visual_tokens.*36.*40"):
        module(attended_features())
    with pytest.raises(ValueError, match="grid.*visualprism"):
        module.output_grid(6)
    fields = VisionFields(
        mm_projector_type=name,
        mm_hidden_size=8,
        num_visual_tokens=4,
        mm_vision_select_feature="cls_patch",
    )
    with pytest.raises(ValueError, match="--mm_vision_select_feature patch.*cls_patch"):
        build_projector(fields, 8)


@pytest.mark.slow
@pytest.mark.parametrize("select_layer", [-2, 3])
@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2"])
def test_attention_is_that_of_transformers(tmp_path, family, select_layer):
    model = tiny.build(
        tmp_path,
        tower=family,
        mm_projector_type="visionzip",
        num_visual_tokens=5,
        mm_vision_select_layer=select_layer,
    )
    tower, pixels = model.get_vision_tower(), torch.randn(2, 3, 56, 56)
    own = tower.vision_tower
    with torch.no_grad():
        given = tower(pixels)
        own.set_attn_implementation("eager")
        outputs = own(pixels, output_attentions=True, output_hidden_states=True)
    index = select_layer if select_layer >= 0 else len(outputs.hidden_states) + select_layer
    weights = outputs.attentions[index - 1].mean(dim=1)
    prefix = tower.num_prefix_tokens
    expected = weights[:, 0, prefix:] if prefix else weights.mean(dim=1)
    torch.testing.assert_close(given.attention, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(given.selected, outputs.hidden_states[index][:, prefix:], atol=1e-5, rtol=0)
    assert given.keys.shape == (2, 16, 2, 16)
    assert given.to(torch.bfloat16).attention.dtype == torch.float32


def test_the_embedding_output_has_no_attention_to_rank_by(tmp_path):
    with pytest.raises(ValueError, match="--mm_vision_select_layer 0"):
        tiny.build(
            tmp_path,
            mm_projector_type="prumerge",
            num_visual_tokens=4,
            mm_vision_select_layer=0,
            mm_vision_levels=[1, 2],
        )


# In a whole model

IDS = torch.tensor([[1, 5, IMAGE_TOKEN_INDEX, 7, 8]])
IMAGES = torch.randn(1, 3, 56, 56)


@torch.no_grad()
def logits(model, **options):
    return model(input_ids=IDS, images=IMAGES, **options).logits


def save_whole(model, folder, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copy(f"{model.config.mm_vision_tower}/preprocessor_config.json", folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PROJECTORS))
def test_a_tiny_model_trains_a_step_is_saved_and_comes_back(tmp_path, bpe_tokenizer, name):
    model = tiny.build(tmp_path, mm_projector_type=name, num_visual_tokens=5)
    parameters = list(model.get_projector().parameters()) or list(model.lm_head.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    model.train()
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    model(input_ids=IDS, labels=IDS.clamp(min=0), images=IMAGES).loss.backward()
    optimizer.step()
    model.eval()
    assert any(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    folder = save_whole(model, tmp_path / "whole", bpe_tokenizer)
    _, loaded, _, _ = load_pretrained_model(folder)
    assert type(loaded.get_projector()) is PROJECTORS[name]
    assert loaded.num_visual_tokens == model.num_visual_tokens
    # Not bit by bit: some processors choose another kernel if memory has another alignment
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=1e-5)
    options = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert loaded.generate(IDS, images=IMAGES, **options).shape == (1, 2)
    if name in COMPRESSING:
        if name in FIXED:
            with pytest.raises(ValueError, match="--scale_factor 2,.*4"):
                logits(loaded, scale_factor=4)
        else:
            assert logits(loaded, scale_factor=4).shape[1] == logits(loaded).shape[1] - 4 + 1


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(PROJECTORS) - {"linear", "identity", "visualprism"}))
def test_a_checkpoint_without_a_projector_leaves_none_of_it_uninitialised(tmp_path, name):
    """transformers builds on the meta device: parameters that reset_parameters forgets would be undefined."""
    built = tiny.build(tmp_path, mm_projector_type=name, num_visual_tokens=5)
    config = built.config
    projector = type(built).from_pretrained(tmp_path / "language_model", config=config).get_projector()
    for key, parameter in projector.named_parameters():
        expected = built.get_projector().get_parameter(key)
        if parameter.ndim > 1 and expected.any():
            assert 0.05 < parameter.std() / expected.std() < 20, (
                key
            )  # 0.02 here, torch's own initial values there
        else:
            assert torch.equal(parameter, expected) or parameter.abs().max() == 0, key


@pytest.mark.parametrize("name", ["visionzip", "prumerge", "avgpool"])
def test_an_mlp_checkpoint_serves_by_a_change_of_its_configuration(tmp_path, bpe_tokenizer, name):
    model = tiny.build(tmp_path, mm_projector_type="mlp2x_gelu")
    bpe_tokenizer.save_pretrained(tmp_path / "language_model")
    whole = save_whole(model, tmp_path / "whole", bpe_tokenizer)
    save_projector(model, tmp_path / "stage1")

    def changed(folder, **keys):
        file = Path(folder) / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "mm_projector_type": name, **keys}))

    for folder, base in ((whole, None), (str(tmp_path / "stage1"), str(tmp_path / "language_model"))):
        changed(folder, num_visual_tokens=5)
        _, loaded, _, _ = load_pretrained_model(folder, base)
        assert loaded.num_visual_tokens == (4 if name == "avgpool" else 5)
        assert logits(loaded).shape[1] == 4 + loaded.num_visual_tokens
        assert torch.equal(loaded.get_projector()[2].weight, model.get_projector()[2].weight)
    changed(whole, num_visual_tokens=16, scale_factor=1)
    if name != "visionzip":  # it has its own order
        torch.testing.assert_close(logits(load_pretrained_model(whole)[1]), logits(model))


# The documentation


def test_the_documentation_names_every_projector_and_its_tokens():
    text = DOCUMENTATION.read_text()
    for name, kind in PROJECTORS.items():
        row = next(line for line in text.splitlines() if line.startswith("| `") and f"`{name}`" in line)
        assert ("144 / 64 / 36" in row) == kind.compresses, name
        assert ("| yes |" in row) == (name in ELASTIC), name
    assert [(24 // s) ** 2 for s in (2, 3, 4)] == [144, 64, 36]
    assert PixelShuffle(WIDTH, LLM_WIDTH, 3).num_tokens(576) == 64
