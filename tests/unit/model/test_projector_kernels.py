"""A projector's cost on a GPU besides arithmetic: kernels, memory traffic, breaks of compiled graphs."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_projector.builder import PROJECTORS, VisionFields, build_projector
from llava.model.multimodal_projector.region_order import by_region, gelu, regions

aten = torch.ops.aten
ALLOCATIONS = (aten.empty, aten.new_empty, aten.empty_like, aten.empty_strided)


def num_bytes(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class EagerKernels(TorchDispatchMode):
    """Counts the kernels and the memory traffic of eager mode, on meta tensors.

    Every call of aten that is neither a view nor an allocation is a kernel, which reads its inputs and writes
    its outputs. Two things of a real device are modelled, since the meta device does not show them:
    a convolution of channels-last maps gives channels-last maps, not channels-first ones; and some operations
    first copy an argument: a layer norm or convolution whose input is not dense, and a product that is added
    to a matrix other than its output. Such copies count as traffic.
    """

    def __init__(self):
        super().__init__()
        self.kernels, self.gigabytes = 0, 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        packet = func.overloadpacket
        if func.is_view or packet in ALLOCATIONS or packet in (aten._unsafe_view, aten.detach):
            return output
        read = [
            part for part in tree_leaves((args, {**kwargs, "out": None})) if isinstance(part, torch.Tensor)
        ]
        written = [part for part in tree_leaves(output) if isinstance(part, torch.Tensor)]
        copied = []
        if packet is aten.convolution:
            channels_last = args[0].stride(1) == 1
            order = torch.channels_last if channels_last else torch.contiguous_format
            if not args[0].is_contiguous(memory_format=order):
                copied.append(args[0])
            output = torch.empty(output.shape, dtype=output.dtype, device="meta", memory_format=order)
        elif packet is aten.native_layer_norm and not args[0].is_contiguous():
            copied.append(args[0])
        elif packet in (aten.addmm, aten.baddbmm) and args[0].dim() > 1 and kwargs.get("out") is not args[0]:
            copied.append(written[0])
        self.kernels += 1
        self.gigabytes += (num_bytes(read) + num_bytes(written) + 2 * num_bytes(copied)) / 1e9
        return output


def clip_l(projector_type: str, training: bool = False):
    """A projector between CLIP-L/336 and a 4096-wide language model, and the features of 32 images."""
    fields = VisionFields(
        mm_projector_type=projector_type,
        mm_vision_config={"image_size": 336, "patch_size": 14},
        mm_hidden_size=1024,
        mm_vision_levels=[12, 16, 22, 23],
        scale_factor=2,
    )
    with torch.device("meta"):
        features = torch.empty(32, 576, 1024), torch.empty(32, 576, 4096)
        module = build_projector(fields, 4096)
    return module.to(torch.bfloat16).train(training), VisionFeatures(*features).to(torch.bfloat16)


@pytest.mark.parametrize(
    ("projector_type", "kernels", "gigabytes"),
    [("visualprism", 40, 2.7), ("visualprism_v2", 50, 3.75), ("tokenpacker", 27, 1.82)],
)
@torch.no_grad()
def test_evaluation_launches_few_kernels_that_move_little(projector_type, kernels, gigabytes):
    module, features = clip_l(projector_type)
    module(features)  # the evaluation form is made before the count
    with EagerKernels() as count:
        module(features)
    assert count.kernels <= kernels
    assert (
        0.9 * gigabytes < count.gigabytes <= gigabytes
    )  # a lower count would mean that the counter misses work


def test_the_training_forward_of_v2_moves_less_than_each_map_by_itself_would():
    module, features = clip_l("visualprism_v2", training=True)
    with EagerKernels() as count:
        module(features)
    assert count.kernels <= 96
    assert count.gigabytes <= 4.1


WIDTH, LLM_WIDTH, LEVELS = 32, 24, 4
SAME_WIDTH = ("identity",)


def small(projector_type: str):
    """A projector with weights far from their initial values, and features of two images with an 8x8 grid."""
    torch.manual_seed(0)
    fields = VisionFields(
        mm_projector_type=projector_type,
        mm_vision_config={"image_size": 112, "patch_size": 14},
        mm_hidden_size=WIDTH,
        mm_vision_levels=list(range(LEVELS)),
        scale_factor=2,
        num_visual_tokens=16,
    )
    module = build_projector(fields, WIDTH if projector_type in SAME_WIDTH else LLM_WIDTH)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    shape = 2, 64
    parts = torch.randn(*shape, WIDTH), torch.randn(*shape, LEVELS * WIDTH), torch.rand(shape)
    return module, VisionFeatures(*parts, torch.randn(*shape, 4, WIDTH // 4))


@pytest.fixture
def compiled():
    torch._dynamo.reset()
    yield lambda module: torch.compile(module, fullgraph=True, backend="eager")
    torch._dynamo.reset()


FOLDED = ("visualprism", "visualprism_v2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("projector_type", "training"),
    # The test below has the evaluation of what is folded
    [
        (name, training)
        for name in (*PROJECTORS, "mlp2x_gelu")
        for training in (False, True)
        if training or name not in FOLDED
    ],
)
def test_every_projector_is_one_graph(compiled, projector_type, training):
    module, features = small(projector_type)
    with torch.set_grad_enabled(training):
        expected = module.train(training)(features)
        torch.testing.assert_close(compiled(module)(features), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("projector_type", FOLDED)
@torch.no_grad()
def test_a_compiled_graph_follows_every_change_of_weights(compiled, projector_type):
    module, features = small(projector_type)
    call = compiled(module.eval())
    before = call(features)
    for parameter in module.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    after = call(features)
    assert not torch.allclose(after, before, atol=1e-3)
    torch.testing.assert_close(after, module(features), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("projector_type", ["visualprism", "visualprism_v2", "tokenpacker"])
@pytest.mark.parametrize("s", [1, 2, 4, 8])
def test_results_written_in_the_order_of_regions_are_those_that_are_copied_into_it(projector_type, s):
    module, features = small(projector_type)
    module.eval().requires_grad_(False)
    copied = module(features, s)  # gradients are enabled, so nothing is written in place
    with torch.no_grad():
        written = module(features, s)
    with torch.inference_mode():
        inferred = module(features, s)
    torch.testing.assert_close(written, copied, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(inferred, copied, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("projector_type", ["visualprism", "visualprism_v2", "tokenpacker"])
@torch.no_grad()
def test_evaluation_under_autocast_is_that_of_the_lower_precision(projector_type):
    module, features = small(projector_type)
    with torch.autocast("cpu", torch.bfloat16):  # the evaluation form is made here, and kept for later
        lower = module.eval()(features).float()
    kept = module(features)
    expected = module.train().eval()(features)
    assert torch.equal(kept, expected)
    assert 0 < (lower - expected).norm() / expected.norm() < 0.03


@pytest.mark.parametrize("s", [1, 2, 3])
def test_gelu_is_written_into_memory_of_any_layout(s):
    maps = torch.randn(2, 6, 6, 8)
    room = torch.full((2, 6 // s, 6 // s, s, s, 24), torch.nan)
    gelu(by_region(maps, s), out=room[..., 8:16])
    expected = torch.nn.functional.gelu(regions(maps.flatten(1, 2), s))
    torch.testing.assert_close(room[..., 8:16].reshape(expected.shape), expected)
    assert room[..., :8].isnan().all()
    assert room[..., 16:].isnan().all()
