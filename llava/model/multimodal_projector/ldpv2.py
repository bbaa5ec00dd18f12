"""LDPv2, MobileVLM V2's projector: pointwise maps, average pooling, and positions by a depthwise convolution
(Chu et al. 2024, "MobileVLM V2: Faster and Stronger Baseline for Vision Language Model", section 3.3)."""

# Legend: multimodal_projector/base.py

from torch import Tensor, nn

from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_projector.base import Compressor, pooled_maps, to_maps, to_tokens, two_layer_map


class LDPv2(Compressor):
    """Turns G*G patches into (G/s)**2 tokens; no parameter depends on s or on G.

    `peg` is the positional encoding generator of Chu et al. 2021 ("Conditional Positional Encodings for
    Vision Transformers"): a depthwise 3x3 convolution whose output is added to its input.

    Args:
        vision_width: C.
        llm_width: D.
        scale_factor: s, 2 in the paper; forward may override it.
    """

    def __init__(self, vision_width: int, llm_width: int, scale_factor: int):
        super().__init__(scale_factor)
        self.mlp = two_layer_map(vision_width, llm_width)
        self.peg = nn.Conv2d(llm_width, llm_width, 3, padding=1, groups=llm_width)

    def compress(self, features: VisionFeatures, scale_factor: int) -> Tensor:
        first, activation, second = self.mlp
        # The paper pools after the second map. A mean commutes with an affine map, so here M positions go
        # through that map instead of N.
        pooled = pooled_maps(to_maps(activation(first(features.selected))), scale_factor)
        maps = to_maps(second(to_tokens(pooled)))
        return to_tokens(maps + self.peg(maps))
