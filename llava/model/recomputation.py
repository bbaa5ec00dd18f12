"""Sets which batches of a training run compute their activations again in the backward pass.

Recomputation (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost") keeps only the input of each
layer. It costs another forward pass, which a batch that fits into memory without it does not need.
"""

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def recompute_activations(decoder: nn.Module, recompute: bool) -> None:
    """Switch recomputation of the decoder's layers on or off, from the next forward pass on.

    The model's gradient_checkpointing_enable must have been called before. A vision tower inside the decoder
    stays as it is.
    """
    for child in decoder.children():
        if isinstance(child, nn.ModuleList):
            for layer in child:
                if isinstance(layer, GradientCheckpointingLayer):
                    layer.gradient_checkpointing = recompute
