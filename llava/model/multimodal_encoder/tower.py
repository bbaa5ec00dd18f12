"""The base of all vision towers: pixels in, the selected layer and the levels out, no unneeded layer run."""

# B images, H = W image_size, N patches (G*G), C tower width, L levels

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llava.errors import UserError
from llava.model.vision_config import CommonFields, resolve_levels, resolve_select_layer


class VisionFeatures(NamedTuple):
    """Features of images; those that were not asked for are None.

    Attributes:
        selected: float[B, N, C].
        levels: float[B, N, L*C].
        attention: float32[B, N], the attention that each patch receives in the layer that gives `selected`,
            averaged over heads: from the class token, or the mean over all patches if there is none.
        keys: float[B, N, h, d], the attention keys of that layer, with h heads.
    """

    selected: Tensor
    levels: Tensor | None = None
    attention: Tensor | None = None
    keys: Tensor | None = None

    def to(self, dtype: torch.dtype) -> "VisionFeatures":
        """The features in that dtype; attention stays as it is, since rounding would make values equal."""
        cast = (part if part is None else part.to(dtype) for part in (self.selected, self.levels, self.keys))
        selected, levels, keys = cast
        return VisionFeatures(selected, levels, self.attention, keys)


class VisionTower(nn.Module):
    """A transformers vision model of which only the layers that the features need are run.

    The subclass of a family sets the classes and defines how pixels become the first hidden state.
    """

    config_class: Any  # transformers' classes
    model_class: Any
    num_prefix_tokens = 0  # class tokens ahead of the patches

    def __init__(self, fields: CommonFields, needs_levels: bool, needs_attention: bool = False):
        super().__init__()
        self.config = self.config_class.from_dict(fields.mm_vision_config)
        # Published checkpoints name the inner model vision_tower: model.vision_tower.vision_tower.*
        self.vision_tower = self.model_class(self.config)
        self.image_size = fields.mm_vision_image_size or self.config.image_size
        self.patch_size = self.config.patch_size
        if self.image_size % self.patch_size:
            raise UserError(
                f"--mm_vision_image_size must be a multiple of the tower's {self.patch_size}-px patches, "
                f"got {self.image_size}; give {self.image_size // self.patch_size * self.patch_size}."
            )
        if fields.mm_vision_select_feature not in ("patch", "cls_patch"):
            raise UserError(
                "--mm_vision_select_feature must be patch or cls_patch, "
                f"got {fields.mm_vision_select_feature!r}."
            )
        depth = self.config.num_hidden_layers
        keep_prefix = fields.mm_vision_select_feature == "cls_patch"
        self.num_skipped = 0 if keep_prefix else self.num_prefix_tokens
        self.selected = resolve_select_layer(fields.mm_vision_select_layer, depth)
        self.levels = resolve_levels(fields.mm_vision_levels, depth, fields.mm_vision_select_layer)
        self.needs_levels = needs_levels
        self.needs_attention = needs_attention
        if needs_attention and self.selected == 0:
            raise UserError(
                f"--mm_projector_type {fields.mm_projector_type} ranks patches by attention, but "
                "--mm_vision_select_layer 0 comes before all attention layers; choose a later one."
            )

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def grid_side(self) -> int:
        """G, patches along one side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """The number of features an image: G*G, plus the class token if it is kept."""
        return self.grid_side**2 + self.num_prefix_tokens - self.num_skipped

    @property
    def layers(self) -> nn.ModuleList:
        return self.vision_tower.encoder.layers

    @property
    def depth(self) -> int:
        """The number of layers that are run: as many as the deepest hidden state in use needs."""
        return max(self.selected, *self.levels) if self.needs_levels else self.selected

    def idle_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that forward never reads: of layers beyond `depth`, of norms and heads after the
        last layer, and mask tokens."""
        for name, part in self.vision_tower.named_children():
            if "post" in name or name in ("layernorm", "head"):
                yield from part.parameters()
        for layer in self.layers[self.depth :]:
            yield from layer.parameters()
        yield from (p for name, p in self.named_parameters() if name.endswith("mask_token"))

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Turn float[B, 3, H, W] into the first hidden state, float[B, prefix + N, C]."""
        raise NotImplementedError

    def run(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """Run one layer without a mask."""
        return layer(hidden, None)

    def attention_parts(self, layer: nn.Module) -> tuple[nn.Module, nn.Linear, nn.Linear]:
        """One layer's norm before the attention, its query map and its key map."""
        return layer.layer_norm1, layer.self_attn.q_proj, layer.self_attn.k_proj

    def attend(self, layer: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Compute VisionFeatures.attention and .keys of a layer from its input.

        The layer itself may run an attention that returns no weights. For a class token they cost one row.
        """
        norm, query_map, key_map = self.attention_parts(layer)
        normed, prefix = norm(hidden), self.num_prefix_tokens
        heads = (self.config.num_attention_heads, -1)
        query = query_map(normed[:, :1] if prefix else normed).unflatten(-1, heads).transpose(1, 2)
        keys = key_map(normed).unflatten(-1, heads)
        scores = query @ keys.permute(0, 2, 3, 1) * keys.shape[-1] ** -0.5  # [B, h, 1 or N, prefix + N]
        attention = scores.softmax(dim=-1, dtype=torch.float32).mean(dim=(1, 2))
        return attention[:, prefix:], keys[:, prefix:]

    def forward(self, pixel_values: Tensor) -> VisionFeatures:
        """Turn normalised float[B, 3, H, W] into VisionFeatures; pixels are cast to the tower's dtype.

        Raises UserError if the pixels are not image_size square.
        """
        expected = (self.image_size, self.image_size)
        if tuple(pixel_values.shape[-2:]) != expected:
            raise UserError(
                f"the vision tower needs {expected[0]}x{expected[1]} pixels, got "
                f"{pixel_values.shape[-2]}x{pixel_values.shape[-1]}; "
                "prepare images with its own image processor."
            )
        learns = any(parameter.requires_grad for parameter in self.parameters())
        # Gradient checkpointing makes embeddings require gradients, which a frozen tower does not need
        with torch.set_grad_enabled(torch.is_grad_enabled() and (learns or pixel_values.requires_grad)):
            return self._features(pixel_values)

    def _features(self, pixel_values: Tensor) -> VisionFeatures:
        wanted = {self.selected, *(self.levels if self.needs_levels else ())}
        hidden = self.embed(pixel_values.to(self.dtype))
        states = {0: hidden}
        attention = keys = None
        for index, layer in enumerate(self.layers[: self.depth], start=1):
            if self.needs_attention and index == self.selected:
                attention, keys = self.attend(layer, hidden)
            hidden = self.run(layer, hidden)
            if index in wanted:
                states[index] = hidden
        patches = {index: states[index][:, self.num_skipped :] for index in wanted}
        levels = torch.cat([patches[index] for index in self.levels], dim=-1) if self.needs_levels else None
        return VisionFeatures(patches[self.selected], levels, attention, keys)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.vision_tower.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.vision_tower.parameters()).device
