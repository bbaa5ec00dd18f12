"""Training-free pruning: keep the patches that the tower attends to most, merge the others, apply an MLP.

The weights have the names of mlp2x_gelu's, so any checkpoint of that type can be used with fewer tokens.
"""

# B images, N patches, K --num_visual_tokens, R = N - kept patches, C tower width, D language model width

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llava.errors import UserError
from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_projector.mlp import MLP
from llava.model.multimodal_projector.options import ProjectorOptions, option
from llava.model.vision_config import CommonFields

CONTEXTUAL_SHARE = 10 / 64  # VisionZip's tables: 54 dominant and 10 contextual tokens of 64


def take(features: Tensor, index: Tensor) -> Tensor:
    """Select float[B, K, ...] from features float[B, N, ...] by index long[B, K]."""
    return features[torch.arange(len(index), device=index.device)[:, None], index]


def split_by_attention(attention: Tensor, num_kept: int) -> tuple[Tensor, Tensor]:
    """The indices of the patches with the most attention and of the others, both in row-major order.

    Maps attention float[B, N] to long[B, num_kept] and long[B, N - num_kept]. If patches have equal
    attention, the first is kept.
    """
    order = attention.argsort(dim=1, descending=True, stable=True)
    return order[:, :num_kept].sort(dim=1).values, order[:, num_kept:].sort(dim=1).values


def merge(features: Tensor, keys: Tensor, weights: Tensor, centres: Tensor, others: Tensor) -> Tensor:
    """Group each of `others` with the centre of the most similar key (cosine); return weighted group means.

    Args:
        features: float[B, N, C].
        keys: float[B, N, d].
        weights: float[B, N], positive.
        centres, others: long[B, K] and long[B, R].
    Returns:
        float[B, K, C].
    """
    unit = F.normalize(keys.float(), dim=-1)
    nearest = (take(unit, others) @ take(unit, centres).mT).argmax(dim=-1)  # [B, R]
    joined = F.one_hot(nearest, centres.shape[1]).mT * take(weights, others)[:, None]  # [B, K, R]
    own = take(weights, centres)[..., None]
    total = own + joined.sum(dim=-1, keepdim=True)
    merged = own * take(features, centres).float() + joined @ take(features, others).float()
    return (merged / total).to(features.dtype)


@dataclass(frozen=True)
class PruningOptions(ProjectorOptions):
    num_visual_tokens: int | None = option(
        None, "Number of tokens per image, required for visionzip and prumerge.", fixes_weights=False
    )


class PruningProjector(MLP):
    """Maps float[B, N, C] to float[B, K, D]: `prune`, then the two-layer MLP.

    Args:
        vision_width: C.
        llm_width: D.
        options: num_visual_tokens is K.
    """

    Options = PruningOptions
    needs_attention = True

    def __init__(self, vision_width: int, llm_width: int, options: PruningOptions):
        super().__init__(vision_width, llm_width)
        self.num_visual_tokens: int = options.num_visual_tokens  # type: ignore[assignment]  # by arguments

    @classmethod
    def arguments(cls, fields: CommonFields) -> dict:
        given = super().arguments(fields)
        num_visual_tokens = given["options"].num_visual_tokens
        if not num_visual_tokens or num_visual_tokens < 1:
            raise UserError(
                f"--mm_projector_type {fields.mm_projector_type} needs --num_visual_tokens, the number of "
                f"tokens per image (for example 64); got {num_visual_tokens}."
            )
        if fields.mm_vision_select_feature != "patch":
            raise UserError(
                f"--mm_projector_type {fields.mm_projector_type} chooses among patches; "
                f"set --mm_vision_select_feature patch, got {fields.mm_vision_select_feature}."
            )
        return given

    def output_grid(self, grid: int, scale_factor: int | None = None) -> int:
        raise UserError(
            f"the {self.num_visual_tokens} tokens of {type(self).__name__} do not form a grid of the image; "
            "choose a projector with a grid, for example visualprism or avgpool."
        )

    def num_tokens(self, num_patches: int, scale_factor: int | None = None) -> int:
        """K. Raises UserError if there are fewer patches than that."""
        if self.num_visual_tokens > num_patches:
            raise UserError(
                f"--num_visual_tokens must be at most the tower's {num_patches} patches, "
                f"got {self.num_visual_tokens}."
            )
        return self.num_visual_tokens

    def prune(self, features: VisionFeatures) -> Tensor:
        """selected float[B, N, C], attention float[B, N] and keys float[B, N, h, d] to float[B, K, C]."""
        raise NotImplementedError

    def project(self, features: VisionFeatures) -> Tensor:
        self.num_tokens(features.selected.shape[1])  # raises if there are too few patches
        return self.map(self.prune(features))


class VisionZip(PruningProjector):
    """Dominant tokens, which are the most attended patches in row-major order, and then contextual tokens.

    A contextual token is the mean of a group. Centres are spaced evenly over the remaining patches; each
    other patch joins the centre with the most similar key (mean over heads). 10 of 64 tokens are contextual.

    Source: Yang et al. 2024, "VisionZip: Longer is Better but Not Necessary in Vision Language Models",
    section 3. The paper's dominant tokens include the class token; here all are patches.
    """

    def prune(self, features: VisionFeatures) -> Tensor:
        x = features.selected
        num_contextual = round(CONTEXTUAL_SHARE * self.num_visual_tokens)
        dominant, rest = split_by_attention(features.attention, self.num_visual_tokens - num_contextual)
        if num_contextual == 0:
            return take(x, dominant)
        places = torch.arange(num_contextual, device=x.device) * rest.shape[1] // num_contextual
        # Centres first, both parts in row-major order. Indexing by a mask would wait for the device.
        order = torch.ones(rest.shape[1], device=x.device).index_fill(0, places, 0).argsort(stable=True)
        centres, others = rest[:, order].split([num_contextual, rest.shape[1] - num_contextual], dim=1)
        equal = torch.ones_like(features.attention)
        contextual = merge(x, features.keys.mean(dim=2), equal, centres, others)  # type: ignore[union-attr]
        return torch.cat([take(x, dominant), contextual], dim=1)


class PruMerge(PruningProjector):
    """The most attended patches in row-major order. Each becomes the attention-weighted mean of itself and of
    those pruned patches to which its key is the nearest.

    Source: Shang et al. 2024, "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal
    Models", section 3. The paper lets the number of tokens vary with the image; here it is fixed, and each
    pruned patch is merged once, into the kept patch with the nearest key.
    """

    def prune(self, features: VisionFeatures) -> Tensor:
        kept, pruned = split_by_attention(features.attention, self.num_visual_tokens)
        return merge(features.selected, features.keys.flatten(2), features.attention, kept, pruned)  # type: ignore[union-attr]
