"""Compression by region attention, the part that TokenPacker and VisualPrism share (SPEC 1 and 2).

Attribute names are those of published checkpoints and belong to the file format.
"""

# Legend: multimodal_projector/base.py

from torch import Tensor, nn

from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_projector.base import NORM_EPS, Compressor, reset_linear_maps, two_layer_map
from llava.model.multimodal_projector.options import ProjectorOptions
from llava.model.multimodal_projector.region_attention import RegionAttention


class RegionCompressor(Compressor):
    """Turns G*G patches into (G/s)**2 tokens: a query attends to its region. No parameter depends on s or G.

    A subclass creates its own submodules in `add_parts` and uses them in `queries`. It may override
    `keys_and_values`, which by default applies two-layer maps to all levels, as in TokenPacker.

    Args:
        vision_width: C, which is E too.
        llm_width: D.
        scale_factor: s; forward may override it.
        num_levels: L.
        num_heads: h, by default E // 128, at least 1.
        options: an instance of the class's Options; None: the defaults.
    """

    needs_levels = True

    def __init__(
        self,
        vision_width: int,
        llm_width: int,
        scale_factor: int,
        num_levels: int = 4,
        num_heads: int | None = None,
        options: ProjectorOptions | None = None,
    ):
        super().__init__(scale_factor)
        width, options = vision_width, options or self.Options()
        if self.maps_levels(options):
            self.k_proj_1 = two_layer_map(num_levels * width, width)
            self.v_proj_1 = two_layer_map(num_levels * width, width)
        self.ln_q_1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.ln_k_1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.ln_v_1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.clip_attn = RegionAttention(width, num_heads)
        self.mlp = two_layer_map(width, llm_width)
        self.add_parts(width, num_levels, options)
        self.initialize()

    def maps_levels(self, options) -> bool:
        """Whether keys and values are made by the two-layer maps."""
        return True

    def add_parts(self, width: int, num_levels: int, options) -> None:
        """Create the submodules of a subclass, given E, L and its options."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        super().reset_parameters()
        reset_linear_maps(self)

    def queries(self, x: Tensor, scale_factor: int) -> Tensor:
        """float[B, N, C] to float[B, M, E]."""
        raise NotImplementedError

    def keys_and_values(self, x_multi: Tensor) -> tuple[Tensor, Tensor]:
        """float[B, N, L*C] to two of float[B, N, E]."""
        return self.ln_k_1(self.k_proj_1(x_multi)), self.ln_v_1(self.v_proj_1(x_multi))

    def compress(self, features: VisionFeatures, scale_factor: int) -> Tensor:
        key, value = self.keys_and_values(features.levels)
        return self.mlp(
            self.clip_attn(self.queries(features.selected, scale_factor), key, value, scale_factor)
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query float[B, M, E], key and value float[B*M, s*s, E] grouped by region, to float[B, M, D]."""
        return self.mlp(self.clip_attn.attend(query, key, value))
