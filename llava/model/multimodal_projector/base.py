"""The base classes of projectors, which turn vision features into tokens of the language model."""

import dataclasses
import math
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from llava.errors import UserError
from llava.model.multimodal_encoder.tower import VisionFeatures
from llava.model.multimodal_projector.norms import OutputNorm
from llava.model.multimodal_projector.options import ProjectorOptions
from llava.model.vision_config import CommonFields
from llava.model.zero3 import gathered

# The projectors' legend: B images, G grid side of the tower, N = G*G patches, s scale_factor, g = G/s,
# M = g*g output tokens, C tower width, L levels, E projector width, h heads, D language model width.

NORM_EPS = 1e-6  # epsilon of the layer norms


class Projector(nn.Module):
    """Turns VisionFeatures into float[B, M, D]: norms of the input, a subclass's `project`, an output norm.

    Both norms are optional.

    A subclass that is also one of torch's modules names Projector first, so that its forward is this one.

    Args:
        others: arguments of a class of torch's that a subclass is mixed with.
    Attributes:
        output_norm: the norm at the end; None, unless from_fields makes one by mm_projector_norm.
        norms_input: whether the input is normalised; in a class, whether it is by default.
        norms_late: whether `project` does this itself where it reads the input, which holds less memory.
        Options: the class of this kind's options, beside its widths and s.
        needs_levels: whether VisionFeatures.levels must be given.
        needs_attention: whether VisionFeatures.attention and keys must be given.
        compresses: whether scale_factor sets the number of output tokens; then forward takes a scale_factor.
        highest_rate: the peak learning rate above which it was seen to learn badly; None: no rate is known.
    """

    Options: ClassVar[type[ProjectorOptions]] = ProjectorOptions
    needs_levels = False
    needs_attention = False
    compresses = False
    highest_rate: float | None = None
    norms_input = False
    norms_late = False
    output_norm: OutputNorm | None

    def __init__(self, *args, **others):
        super().__init__(*args, **others)
        self.output_norm = None

    @classmethod
    def from_fields(cls, fields: CommonFields, llm_width: int) -> "Projector":
        """Build the projector that the multimodal keys of config.json ask for; `llm_width` is D."""
        options = cls.options(fields)
        projector = cls(fields.mm_hidden_size, llm_width, **cls.arguments(fields))
        projector.norms_input = bool(options.mm_projector_input_norm)
        if options.mm_projector_norm:
            projector.output_norm = OutputNorm(llm_width)
        return projector

    @classmethod
    def options(cls, fields: object) -> ProjectorOptions:
        """Read the options from a configuration; one that is None gets this class's own default."""
        given = cls.Options.of(fields)
        if given.mm_projector_input_norm is None:
            given = dataclasses.replace(given, mm_projector_input_norm=cls.norms_input)
        return given

    @classmethod
    def arguments(cls, fields: CommonFields) -> dict:
        """The constructor's arguments beside the two widths."""
        given: dict = {"scale_factor": fields.scale_factor} if cls.compresses else {}
        if cls.needs_levels:
            given["num_levels"] = len(fields.mm_vision_levels)  # type: ignore[arg-type]
        if cls.Options is not ProjectorOptions:
            given["options"] = cls.options(fields)
        return given

    @classmethod
    def prepare_for_ranks(cls, fields: CommonFields) -> None:
        """Change those options that must be different in a run on several ranks."""

    def output_grid(self, grid: int, scale_factor: int | None = None) -> int:
        """Side of the output grid. The tokens are equal squares of the image, in row-major order.

        Args:
            grid: G.
            scale_factor: s of a call, for a projector that compresses; by default the module's own.
        """
        return grid

    def num_tokens(self, num_patches: int, scale_factor: int | None = None) -> int:
        """M for N features, which include the class token if it is kept; scale_factor as in output_grid."""
        return num_patches

    def scale_to(self, embeddings: Tensor) -> None:
        """Give a new projector's tokens the size of the embeddings float[words, D], if it has an output norm.

        ZeRO-3 may have split the embeddings.
        """
        if self.output_norm is not None:
            with gathered([embeddings]):
                self.output_norm.scale_to(embeddings)

    def forward(self, features: VisionFeatures, scale_factor: int | None = None) -> Tensor:
        """Turn VisionFeatures into float[B, M, D]; only a projector that compresses takes a scale_factor."""
        features = VisionFeatures(*features)  # published code passes a pair
        options = {} if scale_factor is None else {"scale_factor": scale_factor}
        tokens = self.project(self.prepared(features), **options)
        return tokens if self.output_norm is None else self.output_norm(tokens)

    def prepared(self, features: VisionFeatures) -> VisionFeatures:
        """The features that `project` takes: normalised layer by layer, if norms_input and not norms_late."""
        if not self.norms_input or self.norms_late:
            return features
        selected, levels = features[:2]
        width = selected.shape[-1]
        if self.needs_levels:
            levels = layers_normed(levels, width)  # type: ignore[arg-type]
        return features._replace(selected=layers_normed(selected, width), levels=levels)

    def project(self, features: VisionFeatures) -> Tensor:
        """Turn VisionFeatures into float[B, M, D]; forward adds the norms that all projectors can have."""
        raise NotImplementedError

    def initialize(self) -> None:
        """Call reset_parameters with whole weights; ZeRO-3 has split those of finished submodules by now."""
        with gathered(self.parameters(), write=True):
            self.reset_parameters()

    def prepare_to_compile(self) -> None:
        """Compute once, from the present weights, what a compiled graph would compute at every call."""

    def reset_parameters(self) -> None:
        """Set the initial weights. transformers calls this too, for weights that a checkpoint lacks."""
        for child in self.modules():
            if child is not self and hasattr(child, "reset_parameters"):
                child.reset_parameters()


class Compressor(Projector):
    """Turns G*G patches into (G/s)**2 tokens.

    Args:
        scale_factor: s of calls that do not give one; a model gives it in each call, from its configuration.
        others: as in Projector.
    """

    compresses = True

    def __init__(self, scale_factor: int, **others):
        super().__init__(**others)
        self.scale_factor = scale_factor

    def output_grid(self, grid: int, scale_factor: int | None = None) -> int:
        return compressed_side(grid, scale_factor or self.scale_factor)

    def num_tokens(self, num_patches: int, scale_factor: int | None = None) -> int:
        return self.output_grid(grid_side(num_patches), scale_factor) ** 2

    def project(self, features: VisionFeatures, scale_factor: int | None = None) -> Tensor:
        """Compress one grid.

        Args:
            features: selected float[B, N, C] and, if needed, levels float[B, N, L*C]; row-major, without the
                class token.
            scale_factor: s of this call, by default the module's own.
        Returns:
            float[B, M, D].
        Raises:
            UserError: if N is not a square or s does not divide its side.
        """
        scale_factor = scale_factor or self.scale_factor
        self.output_grid(grid_side(features.selected.shape[1]), scale_factor)  # raises if s does not divide G
        return self.compress(features, scale_factor)

    def compress(self, features: VisionFeatures, scale_factor: int) -> Tensor:
        """Compress as project does; s is known to divide the grid's side."""
        raise NotImplementedError


class FixedScaleCompressor(Compressor):
    """A compressor whose weights have shapes that depend on s. It serves only the s that it was made for."""

    def output_grid(self, grid: int, scale_factor: int | None = None) -> int:
        if scale_factor not in (None, self.scale_factor):
            raise UserError(
                f"this {type(self).__name__} works only with --scale_factor {self.scale_factor}, because its "
                f"weights depend on it, got {scale_factor}; train one for that factor, or a type that works "
                "with any (visualprism)."
            )
        return super().output_grid(grid)


def grid_side(num_patches: int) -> int:
    """G for N = G*G patches. Raises UserError if N is not a square, for example with the class token."""
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise UserError(
            f"a compressing projector needs a square grid of patches, got {num_patches} features; "
            "use --mm_vision_select_feature patch."
        )
    return side


def compressed_side(grid: int, scale_factor: int) -> int:
    """g = G/s. Raises UserError if s is not a positive divisor of G; the message lists the divisors."""
    if scale_factor < 1 or grid % scale_factor:
        divisors = [s for s in range(1, grid + 1) if grid % s == 0]
        raise UserError(
            f"--scale_factor must divide the {grid}x{grid} grid, got {scale_factor}; "
            f"choose from {', '.join(map(str, divisors))}."
        )
    return grid // scale_factor


def layers_normed(states: Tensor, width: int) -> Tensor:
    """Give each layer in float[B, N, layers*C] mean 0 and variance 1 over its C = `width` channels.

    A tower's states grow from layer to layer, so that otherwise the deepest layer has the most effect.
    """
    return F.layer_norm(states.unflatten(-1, (-1, width)), (width,), eps=NORM_EPS).flatten(-2)


def pooled_maps(maps: Tensor, scale_factor: int) -> Tensor:
    """float[B, C, G, G] to float[B, C, g, g]: the mean of each s x s region."""
    return F.adaptive_avg_pool2d(maps, maps.shape[-1] // scale_factor)


def to_maps(tokens: Tensor) -> Tensor:
    """float[B, N, C], row-major, to float[B, C, G, G]; a view."""
    return tokens.transpose(1, 2).unflatten(2, (grid_side(tokens.shape[1]),) * 2)


def to_tokens(maps: Tensor) -> Tensor:
    """float[B, C, G, G] to float[B, N, C], row-major; a view."""
    return maps.flatten(2).transpose(1, 2)


def downsample(maps: Tensor, scale_factor: int) -> Tensor:
    """float[B, C, G, G] to float[B, C, g, g], bilinear without aligned corners.

    With an integer factor each sample is the centre of its block: the middle pixel if s is odd, the mean of
    the middle four (summed in float32) if s is even.
    """
    middle = (scale_factor - 1) // 2
    if scale_factor % 2:
        return maps[..., middle::scale_factor, middle::scale_factor]
    if scale_factor > 2:
        # Only the middle pixels, side by side: pooling has a slow backward pass if windows do not touch
        blocks = maps.unflatten(-1, (-1, scale_factor)).unflatten(-3, (-1, scale_factor))
        middles = blocks[..., middle : middle + 2, :, middle : middle + 2].permute(0, 2, 3, 4, 5, 1)
        maps = middles.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
    return F.avg_pool2d(maps, 2)


def two_layer_map(in_width: int, out_width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_width, out_width), nn.GELU(), nn.Linear(out_width, out_width))


def reset_linear_maps(module: nn.Module) -> None:
    """Draw weights of linear maps and convolutions trunc-normal, sigma 0.02; set biases to 0 (SPEC 1)."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                init.zeros_(part.bias)
