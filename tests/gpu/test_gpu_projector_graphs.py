"""A projector in a CUDA graph and a compiled one give the results of plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from lineup import CASES, make, make_features
from measures import assert_near

# A graph replays the same kernels; a compiler fuses them and rounds a few times less
BOUND = 1e-5


def on(device, name: str, scale_factor: int):
    """A projector in evaluation mode and its features, in float32."""
    module = make(name, scale_factor).to(device).eval()
    features = make_features(name)
    return module, type(features)(*(part.to(device) for part in features))


@pytest.mark.parametrize(("name", "scale_factor"), [case for case in CASES if case[0] != "identity"])
def test_a_cuda_graph_replays_what_runs_eagerly(cuda, name, scale_factor):
    """New features are copied into the graph's input and replayed, and the first ones have no effect."""
    module, features = on(cuda, name, scale_factor)
    other = on(cuda, name, scale_factor)[1]
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(
            stream
        ):  # a warm-up: libraries allocate their workspace, and visualprism folds its weights
            for _ in range(3):
                module(features)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = module(features)
        expected = [module(inputs) for inputs in (features, other)]
        for inputs, output in zip((features, other), expected, strict=True):
            for own, part in zip(features, inputs, strict=True):
                own.copy_(part)
            captured.fill_(float("nan"))  # this remains unless the graph writes its output again
            graph.replay()
            torch.cuda.synchronize()
            assert_near(captured, output, BOUND, "the graph's output")


@pytest.mark.parametrize("name", ["visualprism", "visualprism_v2"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_compiled_projector_is_the_eager_one(device, name, training):
    """It compares outputs, and in training the gradients of all parameters."""
    module, features = on(device, name, 2)
    module.train(training)
    backend = {} if device.type == "cuda" else {"backend": "aot_eager"}
    torch._dynamo.reset()
    compiled = torch.compile(module, dynamic=False, **backend)
    if not training:
        with torch.no_grad():
            expected = module(features)
            for call in ("first", "second"):
                assert_near(compiled(features), expected, BOUND, f"the compiled output of the {call} call")
        return
    wanted, cotangent = dict(module.named_parameters()), None
    outputs, grads = [], []
    for form in (
        module,
        compiled,
    ):  # one after the other, because batch norms change tensors that a backward pass reads
        outputs.append(form(features))
        cotangent = torch.randn_like(outputs[0]) if cotangent is None else cotangent
        grads.append(torch.autograd.grad(outputs[-1], wanted.values(), cotangent))
    assert_near(outputs[1], outputs[0], BOUND, "the compiled output")
    largest = max(grad.norm().item() for grad in grads[0])
    for parameter, expected, found in zip(wanted, *grads, strict=True):
        scale = max(expected.norm().item(), 0.01 * largest)
        assert_near(found, expected, 1e-4, f"the gradient of {parameter}", scale)
