"""Linear maps that serving engines do not replace.

An engine replaces each nn.Linear by its own class and may pack the weights, but in evaluation our projectors
read the weights to fold them. A projector is small, so nothing is lost without the engine's class.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_projector.base import Projector
from llava.model.multimodal_projector.mlp import LinearProjector


class PlainLinear(nn.Module):
    """Computes what an nn.Linear computes, with the parameters of that nn.Linear."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class PlainLinearProjector(Projector, PlainLinear):
    """LinearProjector without being an nn.Linear."""

    def __init__(self, linear: LinearProjector):
        super().__init__(linear)
        self.norms_input, self.output_norm = linear.norms_input, linear.output_norm

    def project(self, features: VisionFeatures) -> Tensor:
        return PlainLinear.forward(self, features.selected)


def left_alone(projector: Projector) -> Projector:
    """Replace each nn.Linear of the projector by a PlainLinear of the same name with the same parameters."""
    if isinstance(projector, LinearProjector):
        return PlainLinearProjector(projector)
    for module in list(projector.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, PlainLinear(child))
    return projector
