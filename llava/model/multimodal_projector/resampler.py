"""Resampler: learnt queries attend to the whole image in one cross-attention layer
(Bai et al. 2023, "Qwen-VL", section 2.1; derived from the perceiver of Flamingo, Alayrac et al. 2022)."""

# Legend: multimodal_projector/base.py; here E is D, the language model's width

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from llava.errors import UserError
from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_projector.base import (
    NORM_EPS,
    FixedScaleCompressor,
    compressed_side,
    reset_linear_maps,
)
from llava.model.multimodal_projector.region_attention import HEAD_WIDTH
from llava.model.vision_config import CommonFields, vision_grid

LONGEST_WAVE = 10_000.0


def sincos_positions(places: Tensor, width: int) -> Tensor:
    """Sine and cosine encodings (Vaswani et al. 2017) of a grid; half of the channels encode each axis.

    Maps places float[n], coordinates along a side, to float[n*n, width], row-major; width is a multiple of 4.
    """
    quarter = width // 4
    frequencies = LONGEST_WAVE ** -(torch.arange(quarter, device=places.device) / quarter)
    angles = places[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # [n, width/2]
    rows = line[:, None].expand(-1, len(line), -1)
    return torch.cat([rows, rows.transpose(0, 1)], dim=2).flatten(0, 1)


class Resampler(FixedScaleCompressor):
    """N / s**2 learnt queries attend to all patches; positions are added to queries and keys.

    Args:
        vision_width: C.
        llm_width: D, a multiple of 4.
        scale_factor: s.
        grid: G; the number of queries is (G/s)**2, so the module takes no other grid.
        num_heads: h, by default the largest divisor of D that is at most D // 128.
    Raises:
        UserError: if s does not divide G, or if 4 or h does not divide D.
    """

    def __init__(
        self, vision_width: int, llm_width: int, scale_factor: int, grid: int, num_heads: int | None = None
    ):
        super().__init__(scale_factor)
        most = max(1, llm_width // HEAD_WIDTH)
        self.num_heads = num_heads or next(h for h in range(most, 0, -1) if llm_width % h == 0)
        if llm_width % 4 or llm_width % self.num_heads:
            raise UserError(
                "--mm_projector_type resampler needs a language model width that is a multiple of 4 and of "
                f"its {self.num_heads} heads, got {llm_width}."
            )
        self.grid = grid
        self.query = nn.Parameter(torch.empty(compressed_side(grid, scale_factor) ** 2, llm_width))
        self.kv_proj = nn.Linear(vision_width, llm_width, bias=False)
        self.ln_q = nn.LayerNorm(llm_width, eps=NORM_EPS)
        self.ln_kv = nn.LayerNorm(llm_width, eps=NORM_EPS)
        self.q_proj = nn.Linear(llm_width, llm_width)
        self.k_proj = nn.Linear(llm_width, llm_width)
        self.v_proj = nn.Linear(llm_width, llm_width)
        self.out_proj = nn.Linear(llm_width, llm_width)
        self.ln_post = nn.LayerNorm(llm_width, eps=NORM_EPS)
        self.proj = nn.Linear(llm_width, llm_width, bias=False)
        self.initialize()

    @classmethod
    def arguments(cls, fields: CommonFields) -> dict:
        return {**super().arguments(fields), "grid": vision_grid(fields)}

    def reset_parameters(self) -> None:
        super().reset_parameters()
        reset_linear_maps(self)
        init.trunc_normal_(self.query, std=0.02)

    def output_grid(self, grid: int, scale_factor: int | None = None) -> int:
        if grid != self.grid:
            raise UserError(
                f"this resampler has queries for a {self.grid}x{self.grid} grid of patches, "
                f"got {grid}x{grid}; set --mm_vision_image_size as it was in training."
            )
        return super().output_grid(grid, scale_factor)

    def positions(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Encoded positions of queries float[M, D] and keys float[N, D]; the unit is a query's spacing."""
        side = self.grid // self.scale_factor
        places = torch.arange(side, device=like.device, dtype=torch.float32)
        fine = (torch.arange(self.grid, device=like.device) + 0.5) / self.scale_factor - 0.5
        width = like.shape[-1]
        return sincos_positions(places, width).to(like.dtype), sincos_positions(fine, width).to(like.dtype)

    def compress(self, features: VisionFeatures, scale_factor: int) -> Tensor:
        x = features.selected
        query_positions, key_positions = self.positions(self.query)
        patches = self.ln_kv(self.kv_proj(x))
        query = self.q_proj(self.ln_q(self.query) + query_positions).expand(x.shape[0], -1, -1)
        parts = (query, self.k_proj(patches + key_positions), self.v_proj(patches))
        heads = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return self.proj(self.ln_post(self.out_proj(attended)))
