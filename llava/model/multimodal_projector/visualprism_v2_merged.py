"""How VisualPrism v2 is computed: linear maps that share an input or are summed are merged into one.

In training, and in a compiled graph without prepare_to_compile, the weights are concatenated at every call.
The evaluation form keeps them, and multiplies together matrices that follow each other (see Foldable).
"""

# Legend: multimodal_projector/base.py

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava.model.multimodal_projector.base import downsample, to_maps, to_tokens
from llava.model.multimodal_projector.folding import FoldedAttention, made_to_keep, product
from llava.model.multimodal_projector.region_order import (
    by_region,
    gelu,
    region_rows,
    regions,
    room_for,
    writes_in_place,
)
from llava.model.multimodal_projector.triple_path import StackedGates, to_image_gains


class MergedVisualPrismV2:
    """The merged weights of a VisualPrismV2 at one moment. It is not a module, so it is not saved or trained.

    Args:
        prism: the VisualPrismV2.
        products: as in Foldable.fold; if True, tensors that depend on s are kept too.
    """

    def __init__(self, prism: nn.Module, products: bool):
        self.prism, self.keeps = prism, products
        self.kept: dict[tuple, Tensor] = {}
        self.merge_queries(products)
        mixes = prism.k_mix[0], prism.v_mix[0]
        self.mix_weight = torch.cat([mix.weight for mix in mixes])
        self.mix_bias = torch.cat([mix.bias for mix in mixes])
        self.branches = None
        if prism.k_branches is not None:
            self.branches = prism.k_branches, prism.v_branches
            self.gates = StackedGates(*(part.gate for part in self.branches))
            self.global_gain = torch.stack([part.global_gain for part in self.branches]).unsqueeze(1)
            self.one = torch.ones_like(self.global_gain[:, :, :1])
        self.attention = FoldedAttention(prism.clip_attn) if products else prism.clip_attn.attend

    def merge_queries(self, products: bool) -> None:
        """Multiply the paths' maps by their fusion weights, and with `products` by the query projection."""
        prism = self.prism
        share = dict(zip(prism.paths, prism.q_fusion_weights.softmax(dim=0), strict=True))
        maps = prism.path_maps()
        self.path_weights = {path: share[path] * weight for path, (weight, _) in maps.items()}
        self.query_bias = sum(share[path] * bias for path, (_, bias) in maps.items())
        if products:
            to_query = prism.q_proj_1.weight
            weights = self.path_weights.items()
            self.path_weights = {path: product(to_query, weight) for path, weight in weights}
            self.query_bias = product(to_query, self.query_bias)
        self.to_query = nn.Identity() if products else prism.q_proj_1
        if "wavelet" in prism.paths:
            self.band_kernel = prism.wavelet_path().kernel()

    def keep(self, make: Callable[..., Tensor], *args) -> Tensor:
        """Return make(*args). An evaluation form keeps the result, except in a compiled graph."""
        if not self.keeps or torch.compiler.is_compiling():
            return make(*args)
        key = (make.__name__, *args)
        if key not in self.kept:
            with made_to_keep(self.mix_weight.device):
                self.kept[key] = make(*args)
        return self.kept[key]

    def __call__(self, x: Tensor, x_multi: Tensor, scale_factor: int) -> Tensor:
        """x float[B, N, C], x_multi float[B, N, L*C] to float[B, M, D]."""
        prism = self.prism
        key, value = self.keys_and_values(x_multi, scale_factor)
        if prism.v_positions is not None:
            value = value * self.keep(prism.v_positions.gains, scale_factor)
        query = self.queries(x, scale_factor)
        return prism.mlp(prism.with_shortcut(self.attention(query, key, value), query))

    def shares_low_band(self, scale_factor: int) -> bool:
        """Whether the identity path takes its samples from the sub-band LL, which is a multiple of them.

        Only an evaluation form does so, because it keeps the weights that fit.
        """
        low_band = self.keeps and {"identity", "wavelet"} <= set(self.prism.paths)
        return low_band and self.prism.wavelet_path().samples_low_band(scale_factor)

    def sampled_weight(self, share_low_band: bool) -> Tensor:
        """The concatenated weights float[E, ...] of the identity and local paths."""
        weights = {path: weight for path, weight in self.path_weights.items() if path != "wavelet"}
        if share_low_band:
            gain = self.prism.wavelet_path().low_band_gains()[0]
            weights["identity"] = weights["identity"] / gain.to(weights["identity"].dtype)
        return torch.cat(list(weights.values()), dim=1)

    def path_rows(self, x: Tensor, scale_factor: int, share_low_band: bool) -> dict[str, list[Tensor]]:
        """The inputs of the paths' linear maps: for each path the parts float[B, M, ...] to be concatenated.

        Sampling comes before the linear maps, with which it commutes.

        Args:
            share_low_band: use LL for the identity path.
        """
        prism = self.prism
        maps = to_maps(prism.normed(x))

        def sampled(part: Tensor) -> Tensor:
            return to_tokens(downsample(part, scale_factor))

        rows = {}
        if "identity" in prism.paths and not share_low_band:
            rows["identity"] = [sampled(maps)]
        if "wavelet" in prism.paths:
            bands = prism.q_wavelet.bands_last(maps)
            if share_low_band:
                rows["identity"] = [bands[:, :, :, 0].flatten(1, 2)]
        if "local" in prism.paths:
            rows["local"] = [sampled(conv(maps)) for conv in prism.q_local]
        if "wavelet" in prism.paths:
            rows["wavelet"] = [prism.q_wavelet(bands, maps.shape[-1] // scale_factor, self.band_kernel)]
        return rows

    def queries(self, x: Tensor, scale_factor: int) -> Tensor:
        """float[B, N, C] to float[B, M, E]."""
        share_low_band = self.shares_low_band(scale_factor)
        rows = self.path_rows(x, scale_factor, share_low_band)
        (bands,) = rows.pop("wavelet", [None])
        if not rows:
            query = F.linear(bands, self.path_weights["wavelet"], self.query_bias)
        else:
            sampled = torch.cat([part for parts in rows.values() for part in parts], dim=-1)
            query = F.linear(sampled, self.keep(self.sampled_weight, share_low_band), self.query_bias)
        if rows and bands is not None:
            total = query.flatten(0, 1)
            room = total if writes_in_place(total) else None
            weight = self.path_weights["wavelet"]
            query = torch.addmm(total, bands.flatten(0, 1), weight.T, out=room).view_as(query)
        return self.prism.ln_q_1(self.to_query(query))

    def keys_and_values(self, x_multi: Tensor, scale_factor: int) -> tuple[Tensor, Tensor]:
        """float[B, N, L*C] to two of float[B*M, s*s, E] grouped by region; values lack position gains."""
        prism = self.prism
        mixed = F.linear(prism.normed(x_multi), self.mix_weight, self.mix_bias)
        batch, num, width = mixed.shape
        room = room_for(mixed, 2, batch, num, width // 2)
        if room is None:
            parts = [F.gelu(part) for part in mixed.chunk(2, dim=-1)]
        else:
            parts = gelu(mixed.unflatten(-1, (2, -1)).movedim(2, 0), out=room)
        if self.branches is not None:
            means = torch.stack([part.mean(dim=1) for part in parts]) if room is None else parts.mean(dim=2)  # type: ignore[union-attr]
            factors = torch.addcmul(self.one, self.global_gain, self.gates.gains(means))
            parts = (
                self.with_residuals(*each, scale_factor)
                for each in zip(parts, factors, self.branches, strict=True)
            )
        else:
            parts = (regions(part, scale_factor) for part in parts)
        key, value = parts
        return prism.ln_k_1(key), prism.ln_v_1(value)

    def with_residuals(self, part: Tensor, factor: Tensor, branches: nn.Module, scale_factor: int) -> Tensor:
        """part float[B, N, E] and factor float[B, E], 1 + global gains, to float[B*M, s*s, E] by region."""
        maps = to_maps(part)
        local, cells = (
            by_region(each.permute(0, 2, 3, 1), scale_factor) for each in (branches.local(maps), maps)
        )
        room = room_for(part, *cells.shape)
        scaled = torch.mul(cells, to_image_gains(factor), out=room)
        return region_rows(torch.addcmul(scaled, local, branches.local_gain, out=room))
