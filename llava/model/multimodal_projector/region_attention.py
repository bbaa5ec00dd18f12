"""Cross-attention within regions: each coarse token attends to the patches it stands for, no others.

Source: TokenPacker (Li et al. 2024, section 3.2); VisualPrism's compressor is the same (SPEC 1).
"""

# B images, g output grid side, M = g*g queries, s scale_factor, G = g*s, N = G*G keys, E width, h heads

import torch
from torch import Tensor, nn
from transformers import initialization as init

from llava.errors import UserError

HEAD_WIDTH = 128  # of the default head count


def regions(grid_features: Tensor, scale_factor: int) -> Tensor:
    """float[B, N, E], row-major grid, to float[B*M, s*s, E]: the patches of each region."""
    batch, num, width = grid_features.shape
    side = round(num**0.5) // scale_factor
    cells = grid_features.reshape(batch, side, scale_factor, side, scale_factor, width)
    return cells.transpose(2, 3).reshape(batch * side * side, scale_factor**2, width)


class RegionAttention(nn.Module):
    """Standard multi-head attention with biases and a packed in-projection, one query a region.

    A region has a single query, so the key in-projection is absorbed into the query and the value
    in-projection is applied after the weighted sum: the same at M*E*E instead of N*E*E each. The key bias
    shifts all of a query's scores alike and cancels in the softmax.
    """

    def __init__(self, width: int, num_heads: int | None = None):
        super().__init__()
        num_heads = num_heads or max(1, width // HEAD_WIDTH)
        if width % num_heads:
            raise UserError(f"attention heads must divide the projector width {width}, got {num_heads}.")
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def reset_parameters(self) -> None:
        init.xavier_uniform_(self.in_proj_weight)
        init.zeros_(self.in_proj_bias)

    def weights(self, query: Tensor, key: Tensor, scale_factor: int) -> Tensor:
        """Attention of each query to the patches of its region, row-major: float[B*M, h, s*s]."""
        width, heads = query.shape[-1], self.num_heads
        w_query, w_key, _ = self.in_proj_weight.chunk(3)
        b_query, b_key, _ = self.in_proj_bias.chunk(3)
        query = nn.functional.linear(query, w_query, b_query).view(-1, heads, width // heads)
        # The key bias has no effect; its zero share keeps it in the graph, where distributed training expects
        # a gradient of every parameter.
        query = (query + 0.0 * b_key.view(heads, -1)) * (width // heads) ** -0.5
        absorbed = torch.einsum("mhd,hde->mhe", query, w_key.view(heads, -1, width))
        return (absorbed @ regions(key, scale_factor).transpose(1, 2)).softmax(dim=-1)

    def gather(self, weights: Tensor, value: Tensor, scale_factor: int) -> Tensor:
        """The weighted values, in-projected, heads side by side: float[B*M, E]; out_proj is still to come."""
        width, heads = value.shape[-1], self.num_heads
        context = weights @ regions(value, scale_factor)  # [B*M, h, E]
        w_value, b_value = self.in_proj_weight.chunk(3)[2], self.in_proj_bias.chunk(3)[2]
        return torch.einsum("mhe,hde->mhd", context, w_value.view(heads, -1, width)).flatten(1) + b_value

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale_factor: int) -> Tensor:
        """query float[B, M, E], key and value float[B, N, E], row-major grids, to float[B, M, E]."""
        gathered = self.gather(self.weights(query, key, scale_factor), value, scale_factor)
        return self.out_proj(gathered).view_as(query)
