"""Groups the views of a batch by image."""

# V views, the images' tiles one after the other; without tiles each view is an image

from torch import Tensor

from llava.errors import UserError
from llava.tiling import Size, WholeImage


def grouped(tiling: WholeImage, num_views: int, image_sizes: Tensor | None) -> list[tuple[Size, int]]:
    """The size (width, height) of each image and the number of its views.

    Args:
        image_sizes: long[V, 2], height and width of the image that a view is of; None without tiles.
    Raises:
        UserError: if sizes are missing, or the numbers of views do not fit the sizes.
    """
    if tiling.max_tiles == 1:
        return [((1, 1), 1)] * num_views  # the layout of a whole image does not depend on its size
    if image_sizes is None or len(image_sizes) != num_views:
        raise UserError(
            f"{num_views} tiles came with {0 if image_sizes is None else len(image_sizes)} image_sizes; pass "
            "the processor's pixel_values and image_sizes unchanged."
        )
    found, first, sizes = [], 0, image_sizes.tolist()
    while first < num_views:
        height, width = sizes[first]
        count = tiling.num_tiles((width, height))
        if sizes[first : first + count] != [[height, width]] * count:
            raise UserError(
                f"an image of {width}x{height} pixels has {count} tiles, but fewer came; pass the "
                "processor's pixel_values and image_sizes unchanged."
            )
        found.append(((width, height), count))
        first += count
    return found
