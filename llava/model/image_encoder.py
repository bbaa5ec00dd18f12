"""From images to visual tokens: how many an image takes, and how tower and projector compute them."""

# V views (tiles; one an image without them), M tokens a view, g = sqrt(M), D model width, s scale_factor

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llava.errors import UserError
from llava.model.multimodal_encoder.tower import VisionTower
from llava.model.multimodal_projector.base import Projector
from llava.tiling import WholeImage, num_positions, tiling_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel as Model
else:
    Model = object  # mixed into a model of transformers


class ImageEncoder(Model):
    """The part of a model that owns tower and projector; they are None for a text-only model."""

    _compiled_encode = None  # by compile_vision

    def get_vision_tower(self) -> VisionTower | None:
        return getattr(self.get_model(), "vision_tower", None)

    def get_projector(self) -> Projector | None:
        return getattr(self.get_model(), "mm_projector", None)

    def train(self, mode: bool = True):
        """Vision parts that are frozen stay in evaluation mode: their running statistics do not move."""
        super().train(mode)
        for part in (self.get_vision_tower(), self.get_projector()):
            if part is not None and not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    def vision_parts(self) -> tuple[VisionTower, Projector]:
        """Tower and projector. Raises UserError if the model is text-only and has neither."""
        tower, projector = self.get_vision_tower(), self.get_projector()
        if tower is None or projector is None:
            raise UserError("this model is text-only: it has no vision tower; load a multimodal checkpoint.")
        return tower, projector

    @property
    def num_visual_tokens(self) -> int:
        """M, tokens a view, at model.config.scale_factor; 0 for a text-only model."""
        return 0 if self.get_vision_tower() is None else self.tokens_per_image()

    def tokens_per_image(self, scale_factor: int | None = None) -> int:
        """M at s, by default model.config.scale_factor.

        Raises UserError if the model is text-only, or s does not divide the grid, or is given for a projector
        that does not compress.
        """
        tower, projector = self.vision_parts()
        if scale_factor is not None and not projector.compresses:
            raise UserError(
                f"scale_factor={scale_factor} came, but {type(projector).__name__} does not compress; "
                "leave it out, or train with a compressing --mm_projector_type."
            )
        return projector.num_tokens(tower.num_patches, self.scale_factor_of(scale_factor))

    def scale_factor_of(self, scale_factor: int | None) -> int:
        """s of a call: the one that it says, else model.config's, the only place where a model keeps it."""
        return self.config.scale_factor if scale_factor is None else scale_factor

    def set_scale_factor(self, scale_factor: int) -> None:
        """Make s the one of every call that does not say.

        Raises UserError, as tokens_per_image, which checks it.
        """
        self.tokens_per_image(scale_factor)
        self.config.scale_factor = scale_factor

    def view_grid(self, scale_factor: int | None = None) -> int:
        """g: the M tokens of a view are g x g equal squares of it, row-major.

        Raises UserError if they are not, or the model is text-only.
        """
        tower, projector = self.vision_parts()
        grid = projector.output_grid(tower.grid_side, self.scale_factor_of(scale_factor))
        num_tokens = self.tokens_per_image(scale_factor)
        if num_tokens != grid * grid:
            raise UserError(
                f"the model gives {num_tokens} visual tokens, which are no {grid}x{grid} grid of "
                "the image; use --mm_vision_select_feature patch."
            )
        return grid

    @property
    def tiling(self) -> WholeImage:
        """How model.config has images tiled. Raises UserError if the model is text-only."""
        return tiling_of(self.config, self.vision_parts()[0].image_size)

    def visual_positions_of(self, size: tuple[int, int], scale_factor: int | None = None) -> int:
        """Positions that an image of (width, height) pixels takes in a prompt: its tokens and separators.

        Raises UserError, as tokens_per_image; or if tiles are to be joined whose tokens are no grid.
        """
        return num_positions(self.tiling, tuple(size), self.tokens_per_view(scale_factor))

    def tokens_per_view(self, scale_factor: int | None = None) -> int:
        """M, checked to be a grid where tiles are joined."""
        if self.tiling.needs_grid:
            self.view_grid(scale_factor)
        return self.tokens_per_image(scale_factor)

    def encode_images(self, images: Tensor, scale_factor: int | None = None) -> Tensor:
        """float[V, 3, H, W], normalised, to float[V, M, D]; s is by default model.config.scale_factor.

        Raises UserError if the model is text-only.
        """
        tower, projector = self.vision_parts()
        images = images.to(tower.device, non_blocking=True)
        scale_factor = self.scale_factor_of(scale_factor) if projector.compresses else None
        if self._compiled_encode is None or torch.is_grad_enabled():
            return self._encode(images, scale_factor)
        torch.compiler.cudagraph_mark_step_begin()
        encoded = self._compiled_encode(images, scale_factor)
        return encoded.clone()  # the next call writes over a graph's output

    def compile_vision(self) -> None:
        """Encode images by one compiled graph from here on, on a GPU in a CUDA graph.

        The first batch of each number of views waits for the compiler. Gradients are computed without it.
        Weights that change later need another call.
        """
        self.vision_parts()[1].prepare_to_compile()
        self._compiled_encode = torch.compile(self._encode, mode="reduce-overhead", dynamic=False)

    def _encode(self, images: Tensor, scale_factor: int | None) -> Tensor:
        tower, projector = self.vision_parts()
        features = tower(images)
        features = features.to(next(iter(projector.parameters()), features.selected).dtype)
        return projector(features) if scale_factor is None else projector(features, scale_factor)
