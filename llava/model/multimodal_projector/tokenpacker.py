"""TokenPacker: coarse queries from the selected layer, refined from several levels within their own region
(Li et al. 2024, "TokenPacker: Efficient Visual Projector for Multimodal LLM", section 3.2; SPEC 2).

Attribute names are those of published checkpoints: a file format.
"""

# Legend: multimodal_projector/base.py

from torch import Tensor, nn

from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_projector.base import (
    NORM_EPS,
    Projector,
    downsample,
    grid_side,
    reset_linear_maps,
    to_maps,
    to_tokens,
    two_layer_map,
)
from llava.model.multimodal_projector.region_attention import RegionAttention
from llava.model.vision_config import VisionFields


class TokenPacker(Projector):
    """G*G patches to (G/s)**2 tokens; no parameter depends on s or on G.

    Args:
        vision_width: C.
        llm_width: D.
        scale_factor: s; forward may override it.
        num_levels: L.
        width: E, by default C.
        num_heads: h, by default E // 128, at least 1.
    """

    needs_levels = True
    compresses = True

    def __init__(
        self,
        vision_width: int,
        llm_width: int,
        scale_factor: int,
        num_levels: int = 4,
        width: int | None = None,
        num_heads: int | None = None,
    ):
        super().__init__()
        width = width or vision_width
        self.scale_factor = scale_factor
        self.q_proj_1 = nn.Linear(vision_width, width, bias=False)
        self.k_proj_1 = two_layer_map(num_levels * vision_width, width)
        self.v_proj_1 = two_layer_map(num_levels * vision_width, width)
        self.ln_q_1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.ln_k_1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.ln_v_1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.clip_attn = RegionAttention(width, num_heads)
        self.mlp = two_layer_map(width, llm_width)
        self.reset_parameters()

    @classmethod
    def from_fields(cls, fields: VisionFields, llm_width: int) -> "TokenPacker":
        return cls(fields.mm_hidden_size, llm_width, fields.scale_factor, len(fields.mm_vision_levels))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        reset_linear_maps(self)

    def forward(self, features: VisionFeatures, scale_factor: int | None = None) -> Tensor:
        """Compress one grid.

        Args:
            features: selected float[B, N, C] and levels float[B, N, L*C], row-major, class token removed.
            scale_factor: s of this call, by default the module's own.
        Returns:
            float[B, M, D].
        Raises:
            ValueError: if N is not a square or s does not divide its side.
        """
        x, x_multi = features[:2]
        scale_factor = scale_factor or self.scale_factor
        self.output_grid(grid_side(x.shape[1]), scale_factor)  # refuses what does not divide
        query = self.ln_q_1(self.q_proj_1(to_tokens(downsample(to_maps(x), scale_factor))))
        key = self.ln_k_1(self.k_proj_1(x_multi))
        value = self.ln_v_1(self.v_proj_1(x_multi))
        return self.mlp(self.clip_attn(query, key, value, scale_factor))
