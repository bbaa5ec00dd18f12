"""Cross-attention within regions: each coarse token attends only to the patches of its own region.

Source: TokenPacker (Li et al. 2024, section 3.2); VisualPrism's compressor is the same (SPEC 1).
"""

# B images, g output grid side, M = g*g queries, s scale_factor, G = g*s, N = G*G keys, E width, h heads

import torch
from torch import Tensor, nn
from transformers import initialization as init

from llava.errors import UserError
from llava.model.multimodal_projector.region_order import regions

HEAD_WIDTH = 128  # channels of a head, by default


def attention_weights(query: Tensor, key: Tensor, key_map: Tensor) -> Tensor:
    """Attention of each query to the patches of its region, row-major.

    Args:
        query: float[B*M, E], in-projected and scaled.
        key: float[B*M, s*s, E], not in-projected.
        key_map: float[h, E/h, E], the in-projection of the keys.
    Returns:
        float[B*M, h, s*s].
    """
    heads = query.unflatten(-1, (len(key_map), -1)).transpose(0, 1)
    absorbed = torch.bmm(heads, key_map).transpose(0, 1)  # [B*M, h, E]
    return torch.bmm(absorbed, key.transpose(1, 2)).softmax(dim=-1)


def weighted_values(weights: Tensor, value: Tensor, value_map: Tensor) -> Tensor:
    """The weighted sum of the values, in-projected without bias, with the heads concatenated.

    Args:
        weights: float[B*M, h, s*s].
        value: float[B*M, s*s, E], not in-projected.
        value_map: float[h, E/h, E], the in-projection of the values.
    Returns:
        float[B*M, E], transposed in memory; a linear map reads it without a copy.
    """
    context = torch.bmm(weights, value)  # [B*M, h, E]
    return torch.bmm(value_map, context.permute(1, 2, 0)).flatten(0, 1).T


class RegionAttention(nn.Module):
    """Standard multi-head attention with biases and a packed in-projection, one query per region.

    A region has a single query, so the key in-projection is absorbed into the query and the value
    in-projection is applied after the weighted sum. The result is the same, at a cost of M*E*E instead of
    N*E*E each. The key bias shifts all scores of a query by the same amount and cancels in the softmax.
    """

    def __init__(self, width: int, num_heads: int | None = None):
        super().__init__()
        num_heads = num_heads or max(1, width // HEAD_WIDTH)
        if width % num_heads:
            raise UserError(
                f"the number of attention heads must divide the projector width {width}, got {num_heads}."
            )
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def reset_parameters(self) -> None:
        init.xavier_uniform_(self.in_proj_weight)
        init.zeros_(self.in_proj_bias)

    @property
    def scale(self) -> float:
        return (self.out_proj.in_features // self.num_heads) ** -0.5

    def query_map(self) -> tuple[Tensor, Tensor]:
        """The in-projection of the queries: weight and bias.

        The key bias has no effect. It is added times zero to keep it in the graph, because distributed
        training expects a gradient for every parameter.
        """
        b_query, b_key, _ = self.in_proj_bias.chunk(3)
        return self.in_proj_weight.chunk(3)[0], b_query + 0.0 * b_key

    def head_maps(self) -> tuple[Tensor, Tensor]:
        """The in-projections of keys and values, each float[h, E/h, E]."""
        _, w_key, w_value = self.in_proj_weight.chunk(3)
        return w_key.unflatten(0, (self.num_heads, -1)), w_value.unflatten(0, (self.num_heads, -1))

    def weights(self, query: Tensor, key: Tensor, scale_factor: int) -> Tensor:
        """Attention float[B*M, h, s*s] of query float[B, M, E] to key float[B, N, E]; all row-major."""
        return self._weights(query, regions(key, scale_factor))

    def gather(self, weights: Tensor, value: Tensor, scale_factor: int) -> Tensor:
        """The in-projected weighted sum of the values, float[B*M, E], heads concatenated, before out_proj."""
        return self._gather(weights, regions(value, scale_factor))

    def _weights(self, query: Tensor, key: Tensor) -> Tensor:
        query = nn.functional.linear(query.flatten(0, 1), *self.query_map()) * self.scale
        return attention_weights(query, key, self.head_maps()[0])

    def _gather(self, weights: Tensor, value: Tensor) -> Tensor:
        return weighted_values(weights, value, self.head_maps()[1]) + self.in_proj_bias.chunk(3)[2]

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query float[B, M, E], key and value float[B*M, s*s, E] grouped by region, to float[B, M, E]."""
        return self.out_proj(self._gather(self._weights(query, key), value)).view_as(query)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale_factor: int) -> Tensor:
        """query float[B, M, E], key and value float[B, N, E], row-major grids, to float[B, M, E]."""
        # Keys and values are grouped by region one after the other, which needs less memory at a time
        weights = self.weights(query, key, scale_factor)
        return self.out_proj(self.gather(weights, value, scale_factor)).view_as(query)
