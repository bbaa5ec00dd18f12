"""A projector inside a CUDA graph, and compiled: both give what plain PyTorch gives."""

from __future__ import annotations

import pytest
import torch
from lineup import CASES, make, make_features
from measures import assert_near

# A graph replays the same kernels; a compiler fuses them and rounds a few times less
BOUND = 1e-5


def on(device, name: str, scale_factor: int):
    """A projector in evaluation and features, in float32."""
    module = make(name, scale_factor).to(device).eval()
    features = make_features(name)
    return module, type(features)(*(part.to(device) for part in features))


@pytest.mark.parametrize(("name", "scale_factor"), CASES)
def test_a_cuda_graph_replays_what_runs_eagerly(cuda, name, scale_factor):
    """New features are copied into the graph's own and replayed: nothing of the first ones is left."""
    module, features = on(cuda, name, scale_factor)
    other = on(cuda, name, scale_factor)[1]
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # a warm-up: libraries take their workspace, visualprism folds
            for _ in range(3):
                module(features)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = module(features)
        for inputs in (features, other):
            expected = module(inputs)
            for own, part in zip(features, inputs, strict=True):
                own.copy_(part)
            captured.fill_(float("nan"))  # unless the graph writes its output anew, this stays
            if name == "identity":  # whose output is its input
                features.selected.copy_(inputs.selected if inputs is other else expected)
                continue
            graph.replay()
            torch.cuda.synchronize()
            assert_near(captured, expected, BOUND, "the graph's output")


@pytest.mark.parametrize("name", ["visualprism", "visualprism_v2"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_compiled_projector_is_the_eager_one(device, name, training):
    """Outputs, and in training the gradients of all parameters."""
    module, features = on(device, name, 2)
    module.train(training)
    backend = {} if device.type == "cuda" else {"backend": "aot_eager"}
    torch._dynamo.reset()
    compiled = torch.compile(module, dynamic=False, **backend)
    with torch.set_grad_enabled(training):
        expected, found = module(features), compiled(features)
        assert_near(found, expected, BOUND, "the compiled output")
        if not training:
            assert_near(compiled(features), expected, BOUND, "the second output")
            return
        cotangent, wanted = torch.randn_like(expected), dict(module.named_parameters())
        grads = [torch.autograd.grad(output, wanted.values(), cotangent) for output in (found, expected)]
        largest = max(grad.norm().item() for grad in grads[1])
        for parameter, *pair in zip(wanted, *grads, strict=True):
            scale = max(pair[1].norm().item(), 0.01 * largest)
            assert_near(*pair, 1e-4, f"the gradient of {parameter}", scale)
