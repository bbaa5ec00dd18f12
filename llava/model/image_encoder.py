"""How many visual tokens an image takes, and how tower and projector compute them."""

# V views (tiles; else one view an image), M tokens a view, g = sqrt(M), D model width, s scale_factor

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llava.errors import UserError
from llava.model.multimodal_encoder.tower import VisionTower
from llava.model.multimodal_projector.base import Projector
from llava.model.multimodal_projector.norms import kept_statistics
from llava.tiling import WholeImage, num_positions, tiling_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel as Model
else:
    Model = object  # mixed into a model of transformers


class ImageEncoder(Model):
    """The part of a model that owns tower and projector; they are None for a text-only model."""

    _compiled_encode = None  # set by compile_vision

    def get_vision_tower(self) -> VisionTower | None:
        return getattr(self.get_model(), "vision_tower", None)

    def get_projector(self) -> Projector | None:
        return getattr(self.get_model(), "mm_projector", None)

    def train(self, mode: bool = True):
        """Set the mode; frozen vision parts stay in evaluation mode, which keeps their running statistics."""
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
        """M, the number of tokens a view, at model.config.scale_factor; 0 for a text-only model."""
        return 0 if self.get_vision_tower() is None else self.tokens_per_image()

    def tokens_per_image(self, scale_factor: int | None = None) -> int:
        """M, the number of tokens a view, at s, by default model.config.scale_factor.

        Raises UserError if the model is text-only, if s does not divide the grid, or if s is given for a
        projector that does not compress.
        """
        tower, projector = self.vision_parts()
        if scale_factor is not None and not projector.compresses:
            raise UserError(
                f"scale_factor={scale_factor} was given, but {type(projector).__name__} does not compress; "
                "leave it out, or train with a compressing --mm_projector_type."
            )
        return projector.num_tokens(tower.num_patches, self.scale_factor_of(scale_factor))

    def scale_factor_of(self, scale_factor: int | None) -> int:
        """The s that a call uses: its own, else model.config's, the only place where a model keeps it."""
        return self.config.scale_factor if scale_factor is None else scale_factor

    def set_scale_factor(self, scale_factor: int) -> None:
        """Make s the default for calls that give none.

        Raises UserError as tokens_per_image does, which checks s.
        """
        self.tokens_per_image(scale_factor)
        self.config.scale_factor = scale_factor

    def view_grid(self, scale_factor: int | None = None) -> int:
        """The side g of a view's grid: its M tokens are g x g equal squares of the view, row-major.

        Raises UserError if the tokens form no such grid, or if the model is text-only.
        """
        tower, projector = self.vision_parts()
        grid = projector.output_grid(tower.grid_side, self.scale_factor_of(scale_factor))
        num_tokens = self.tokens_per_image(scale_factor)
        if num_tokens != grid * grid:
            raise UserError(
                f"the model makes {num_tokens} visual tokens, which do not form a {grid}x{grid} grid of "
                "the image; use --mm_vision_select_feature patch."
            )
        return grid

    @property
    def tiling(self) -> WholeImage:
        """The tiling of images that model.config sets. Raises UserError if the model is text-only."""
        return tiling_of(self.config, self.vision_parts()[0].image_size)

    def visual_positions_of(self, size: tuple[int, int], scale_factor: int | None = None) -> int:
        """The number of positions that an image of (width, height) pixels takes in a prompt, with separators.

        Raises UserError as tokens_per_image does, or if tiles are to be joined and their tokens form no grid.
        """
        return num_positions(self.tiling, tuple(size), self.tokens_per_view(scale_factor))

    def tokens_per_view(self, scale_factor: int | None = None) -> int:
        """M, after a check that the tokens form a grid if tiles are to be joined."""
        if self.tiling.needs_grid:
            self.view_grid(scale_factor)
        return self.tokens_per_image(scale_factor)

    def encode_images(self, images: Tensor, scale_factor: int | None = None) -> Tensor:
        """Encode normalised float[V, 3, H, W] as float[V, M, D]; s is by default model.config.scale_factor.

        Raises UserError if the model is text-only.
        """
        tower, projector = self.vision_parts()
        images = images.to(tower.device, non_blocking=True)
        scale_factor = self.scale_factor_of(scale_factor) if projector.compresses else None
        if self._compiled_encode is None or torch.is_grad_enabled():
            return self._encode(images, scale_factor)
        torch.compiler.cudagraph_mark_step_begin()
        encoded = self._compiled_encode(images, scale_factor)
        return encoded.clone()  # the next call overwrites the graph's output

    def _views(self, images: Tensor | list[Tensor] | None) -> tuple[Tensor | None, list[int]]:
        """All views of a batch, float[V, 3, H, W], for one call of the tower; the number for each image."""
        if images is None or len(images) == 0:
            return None, []
        self.vision_parts()  # refuses images for a text-only model
        if isinstance(images, Tensor) and images.ndim == 4:
            return images, [1] * len(images)
        groups = [image[None] if image.ndim == 3 else image for image in images]
        return torch.cat(groups), [len(group) for group in groups]

    def _image_features(
        self, views: Tensor | None, like: Tensor, scale_factor: int | None, has_labels: bool
    ) -> Tensor:
        """The tokens of all views, float[V * M, D].

        In training, or if there are labels, a batch without images encodes a blank image and keeps none of
        its tokens, so that every rank takes part in every collective.
        """
        if views is not None:
            return self.encode_images(views, scale_factor).flatten(0, 1)
        if (self.training or has_labels) and (tower := self.get_vision_tower()) is not None:
            side = tower.image_size
            blank = like.new_zeros(1, 3, side, side)
            with kept_statistics(self.get_projector()):
                return self.encode_images(blank, scale_factor).flatten(0, 1)[:0]
        return like.new_zeros(0, self.get_input_embeddings().embedding_dim)

    def compile_vision(self) -> None:
        """Encode images with one compiled graph from now on; on a GPU it is a CUDA graph.

        The first batch with each number of views waits for the compiler. Calls that need gradients do not use
        the graph. Call this again if weights change later.
        """
        self.vision_parts()[1].prepare_to_compile()
        self._compiled_encode = torch.compile(self._encode, mode="reduce-overhead", dynamic=False)

    def _encode(self, images: Tensor, scale_factor: int | None) -> Tensor:
        tower, projector = self.vision_parts()
        features = tower(images)
        features = features.to(next(iter(projector.parameters()), features.selected).dtype)
        return projector(features) if scale_factor is None else projector(features, scale_factor)
