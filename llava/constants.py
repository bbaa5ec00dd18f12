"""Token strings and indices that all parts of the package share; they are defined only here."""

IGNORE_INDEX = -100  # label of a position that has no loss
IMAGE_TOKEN_INDEX = -200  # placeholder in input_ids for the tokens of an image

DEFAULT_IMAGE_TOKEN = "<image>"
DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"
DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IM_END_TOKEN = "<im_end>"
IMAGE_PLACEHOLDER = "<image-placeholder>"
