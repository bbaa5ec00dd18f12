"""Turns images into the pixels of their views, with the same arithmetic as in training."""

# V views of all images, M tokens a view, s scale factor

from collections.abc import Sequence

import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_transforms import to_pil_image
from transformers.image_utils import make_flat_list_of_images
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.processing_utils import ImagesKwargs

from llava.errors import UserError
from llava.mm_utils import process_images
from llava.tiling import PATCH_MERGE_TYPES, PATCH_NUMS, TILED, Size, WholeImage, num_positions, tiling_of

# The settings that the processor of one view gets; the options of a call do not change them
OPTIONS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std"),
)


class VisualPrismImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    scale_factor: int | None


class VisualPrismImageProcessor(LlavaImageProcessorPil):
    """Runs llava.mm_utils.process_images.

    Args:
        tokens_per_view: maps each s that the model serves to its M; for a projector that does not compress,
            it maps 1 to the only M.
        image_aspect_ratio, patch_num, image_grid_pinpoints, mm_patch_merge_type: as llava.tiling.tiling_of
            reads them.
        options: those of a LlavaImageProcessor, with the tower's square as crop_size; and scale_factor, the s
            of calls that give none. It is None for a projector that does not compress.
    """

    valid_kwargs = VisualPrismImagesKwargs
    scale_factor: int | None = None
    model_input_names = ["pixel_values", "image_sizes", "scale_factors"]  # noqa: RUF012

    def __init__(
        self,
        tokens_per_view: dict | None = None,
        image_aspect_ratio: str = "square",
        patch_num: int | str = PATCH_NUMS[0],
        image_grid_pinpoints: Sequence | str | None = None,
        mm_patch_merge_type: str = PATCH_MERGE_TYPES[0],
        **options,
    ):
        super().__init__(**options)
        self.tokens_per_view = {str(s): num_tokens for s, num_tokens in (tokens_per_view or {}).items()}
        self.image_aspect_ratio, self.patch_num = image_aspect_ratio, patch_num
        self.image_grid_pinpoints, self.mm_patch_merge_type = image_grid_pinpoints, mm_patch_merge_type

    @property
    def tiling(self) -> WholeImage:
        return tiling_of(self, dict(self.crop_size)["height"])

    def served(self, scale_factor: int | None) -> int | None:
        """The s that a call uses; None for a projector that does not compress.

        Raises:
            UserError: for an s that the model does not serve; any client of a server may send one.
        """
        if scale_factor is None:
            return self.scale_factor
        if self.scale_factor is None:
            raise UserError(
                f"scale_factor={scale_factor!r} was given, but this model's projector does not compress; "
                "leave it out."
            )
        is_whole = isinstance(scale_factor, int) and not isinstance(scale_factor, bool)
        if not is_whole or str(scale_factor) not in self.tokens_per_view:
            raise UserError(
                f"scale_factor must be one of {', '.join(self.tokens_per_view)}, got {scale_factor!r}."
            )
        return scale_factor

    def num_image_tokens(self, size: Size, scale_factor: int | None = None) -> int:
        """The number of positions of an image of (width, height) pixels. Raises UserError as served."""
        return num_positions(self.tiling, size, self.num_view_tokens(scale_factor))

    def num_view_tokens(self, scale_factor: int | None = None) -> int:
        """The M that a call uses. Raises UserError as served."""
        return self.tokens_per_view[str(self.served(scale_factor) or 1)]

    def preprocess(
        self, images, scale_factor: int | None = None, return_tensors: str | None = None, **others
    ) -> BatchFeature:
        """Turn images, in any form that transformers takes, into the views of all of them.

        Args:
            scale_factor: the s of all images.
        Returns:
            pixel_values float[V, 3, H, W]; with tiles also image_sizes long[V, 2], the height and width of
            the image that each view belongs to; if the projector compresses, also scale_factors long[V].
        Raises:
            UserError: as served.
        """
        scale_factor = self.served(scale_factor)
        pictures = [
            image if isinstance(image, Image.Image) else to_pil_image(image)
            for image in make_flat_list_of_images(images)
        ]
        one_view = LlavaImageProcessorPil(**{name: getattr(self, name) for name in OPTIONS})
        views = [
            pixels[None] if pixels.ndim == 3 else pixels
            for pixels in process_images(pictures, one_view, self)
        ]
        data = {"pixel_values": torch.cat(views)}
        if self.image_aspect_ratio in TILED:
            sizes = torch.tensor([[picture.height, picture.width] for picture in pictures])
            data["image_sizes"] = sizes.repeat_interleave(torch.tensor([len(own) for own in views]), dim=0)
        if scale_factor is not None:
            data["scale_factors"] = torch.full((len(data["pixel_values"]),), scale_factor)
        return BatchFeature(data, tensor_type=return_tensors)
