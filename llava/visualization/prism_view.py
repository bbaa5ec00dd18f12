"""PrismView: the arrays that show what a model's VisualPrism computes for one image."""

from dataclasses import dataclass

import numpy as np

from llava.errors import UserError

SCALE_FACTORS = (2, 3, 4)  # shown by default if they divide the grid
BANDS = ("LL", "LH", "HL", "HH")


@dataclass(frozen=True)
class PrismView:
    """One view of an image, and what VisualPrism computes for it; shapes as in PrismParts, for one image.

    Attributes:
        view: uint8[S, S, 3], RGB, the tower's input.
        paths: names of the P query paths.
        fusion: float32[P], their learnt weights.
        path_norms: float32[P, G, G].
        subband_energy: float32[4, H, H], in the order of BANDS; [0, H, H] without the wavelet path.
        region_attention: {s: float32[g, g, h, s, s]}.
    """

    view: np.ndarray
    paths: tuple[str, ...]
    fusion: np.ndarray
    path_norms: np.ndarray
    subband_energy: np.ndarray
    region_attention: dict[int, np.ndarray]

    def path_shares(self) -> np.ndarray:
        """Return float32[P]: each path's weight times its mean length, normalised to sum to 1."""
        lengths = self.fusion * self.path_norms.mean(axis=(1, 2))
        return lengths / lengths.sum()

    def taken(self, scale_factor: int) -> np.ndarray:
        """Return float32[G, G]: each patch's attention weight times s*s (1: equal part), mean of heads."""
        weights = self.region_attention[scale_factor].mean(axis=2)  # [g, g, s, s]
        side = weights.shape[0] * scale_factor
        return weights.swapaxes(1, 2).reshape(side, side) * scale_factor**2


def prism_view(model, image_processor, image, scale_factors: list[int] | None = None) -> PrismView:
    """Run a model's VisualPrism on an image.

    If the image is cut into tiles, the view of the whole image is used.

    Args:
        model, image_processor: as load_pretrained_model returns them.
        image: PIL, RGB.
        scale_factors: each s whose region attention is computed; None: the default of --scale_factors.
    Raises:
        UserError: for a model with another projector or none, or an s that does not divide the grid.
    """
    import torch

    tower, projector = model.get_vision_tower(), model.get_projector()
    if not hasattr(projector, "inspect"):
        kind = "no projector" if projector is None else f"a {type(projector).__name__}"
        raise UserError(
            f"this command shows the parts of a VisualPrism, but the model has {kind}; give a --model_path "
            "that was trained with --mm_projector_type visualprism."
        )
    if scale_factors is None:
        allowed = [s for s in SCALE_FACTORS if tower.grid_side % s == 0]
        scale_factors = sorted({model.config.scale_factor, *allowed})
    pixels = whole_view(model, image_processor, image)
    with torch.inference_mode():
        parts = projector.inspect(tower(pixels.to(tower.device)), scale_factors)
    mean, std = (
        np.reshape(values, (3, 1, 1)) for values in (image_processor.image_mean, image_processor.image_std)
    )
    view = np.clip(np.rint(255 * (pixels[0].float().numpy() * std + mean)), 0, 255).astype(np.uint8)
    side = parts.path_norms.shape[-1]
    energy = parts.subband_energy
    return PrismView(
        np.ascontiguousarray(view.transpose(1, 2, 0)),
        parts.paths,
        parts.fusion.cpu().numpy(),
        parts.path_norms[0].cpu().numpy(),
        np.zeros((0, -(-side // 2), -(-side // 2)), np.float32)
        if energy is None
        else energy[0].cpu().numpy(),
        {s: weights[0].cpu().numpy() for s, weights in parts.region_attention.items()},
    )


def whole_view(model, image_processor, image):
    """Return float[1, 3, S, S]: the whole image as input of the tower, prepared as model.config says."""
    from llava.mm_utils import process_images

    (views,) = process_images([image], image_processor, model.config)
    if views.ndim == 3:
        return views[None]
    num_tiles = [canvas.rows * canvas.cols for canvas in model.tiling.canvases(image.size)]
    return views[sum(num_tiles[: num_tiles.index(1)])][None]
