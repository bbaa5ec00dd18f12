"""Turns chats with images into the inputs of a VisualPrismForConditionalGeneration."""

from transformers import ProcessorMixin
from transformers.processing_utils import MultiModalData, ProcessingKwargs

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.hf.image_processing import VisualPrismImagesKwargs
from llava.hf.views import grouped


class VisualPrismProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    images_kwargs: VisualPrismImagesKwargs
    _defaults = {"text_kwargs": {"padding": False}}  # noqa: RUF012


class VisualPrismProcessor(ProcessorMixin):
    """Replaces each <image> in a text by as many tokens as its image takes; calls may give `scale_factor`.

    Args:
        image_processor: a VisualPrismImageProcessor, which computes the numbers of tokens.
        tokenizer: has <image> as a token.
    """

    valid_processor_kwargs = VisualPrismProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **others):
        self.image_token = DEFAULT_IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **others) -> str:
        """The text of an image's tokens, computed from what the image processor returned."""
        images = self.image_processor
        num_views, sizes = len(image_inputs["pixel_values"]), image_inputs.get("image_sizes")
        views = grouped(images.tiling, num_views, sizes)
        factors, first = image_inputs.get("scale_factors"), sum(count for _, count in views[:image_idx])
        scale_factor = None if factors is None else int(factors[first])
        return self.image_token * images.num_image_tokens(views[image_idx][0], scale_factor)

    def _get_num_multimodal_tokens(self, image_sizes=None, **options) -> MultiModalData:
        """The numbers of tokens and views of images of (height, width) pixels, for serving engines."""
        if image_sizes is None:
            return MultiModalData()
        images, scale_factor = self.image_processor, options.get("scale_factor")
        sizes = [(int(width), int(height)) for height, width in image_sizes]
        return MultiModalData(
            num_image_tokens=[images.num_image_tokens(size, scale_factor) for size in sizes],
            num_image_patches=[images.tiling.num_tiles(size) for size in sizes],
        )
