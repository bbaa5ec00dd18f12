"""Token strings and indices that every room shares; defined here alone."""

IGNORE_INDEX = -100  # label of a position on which no loss falls
IMAGE_TOKEN_INDEX = -200  # stands in input_ids where an image's tokens will be

DEFAULT_IMAGE_TOKEN = "<image>"
DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"
DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IM_END_TOKEN = "<im_end>"
IMAGE_PLACEHOLDER = "<image-placeholder>"
