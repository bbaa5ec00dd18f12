"""TokenPacker: coarse queries from the selected layer, refined from several levels within their own region
(Li et al. 2024, "TokenPacker: Efficient Visual Projector for Multimodal LLM", section 3.2; SPEC 2).

Attribute names are those of published checkpoints and belong to the file format.
"""

# Legend: multimodal_projector/base.py

from torch import Tensor, nn

from llava.model.multimodal_projector.base import downsample, to_maps, to_tokens
from llava.model.multimodal_projector.compressor import RegionCompressor


class TokenPacker(RegionCompressor):
    """Turns G*G patches into (G/s)**2 tokens; no parameter depends on s or G. Args: as RegionCompressor."""

    def add_parts(self, width: int, num_levels: int, options) -> None:
        self.q_proj_1 = nn.Linear(width, width, bias=False)

    def queries(self, x: Tensor, scale_factor: int) -> Tensor:
        """float[B, N, C] to float[B, M, E]."""
        return self.ln_q_1(self.q_proj_1(to_tokens(downsample(to_maps(x), scale_factor))))
