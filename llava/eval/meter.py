"""Progress within a batch, while a model generates its answers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer as TransformerBlock


class Meter:
    """Reports the fraction of a batch's computation that is done, each time a transformer block has run.

    On a CPU a batch may take a minute, most of it in the one pass over images and prompts before the first
    token of an answer; a count of finished answers would not change for that long. The computation of a
    block is estimated as its number of weights times the positions it processes. The number of tokens in the
    answers is not known in advance: the first batch assumes the maximum, and each later batch assumes the
    number of the batch before. Computation in a compiled graph is not counted.

    Args:
        max_new_tokens: maximum answer length in tokens.
        tell: called with the fraction, from 0 to 1; it never decreases within a batch.
    """

    def __init__(self, model, max_new_tokens: int, tell: Callable[[float], None]):
        self.tell = tell
        self.new_tokens = max_new_tokens
        self._tower = model.get_vision_tower()
        in_tower = set() if self._tower is None else set(self._tower.modules())
        self._weights = {
            block: sum(weight.numel() for weight in block.parameters())
            for block in model.modules()
            if isinstance(block, TransformerBlock)
        }
        self._per_patch = sum(size for block, size in self._weights.items() if block in in_tower)
        self._per_token = sum(self._weights.values()) - self._per_patch
        self._done = self._total = 0

    @contextmanager
    def batch(self, num_rows: int, length: int, images: Tensor | list[Tensor] | None) -> Iterator[None]:
        """Watch one call of generate.

        Args:
            num_rows: number of sequences, counting each beam.
            length: positions of the longest prompt.
            images: as process_images returns them.
        """
        num_views = 0 if images is None else sum(len(one) if one.ndim == 4 else 1 for one in images)
        in_tower = self._per_patch * self._tower.num_patches * num_views if num_views else 0
        self._done, self._total = 0, in_tower + self._per_token * num_rows * (length + self.new_tokens)
        hooks = [block.register_forward_hook(self._count) for block in self._weights]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _count(self, block, inputs, output) -> None:
        if torch.compiler.is_compiling():  # to report from a compiled graph would break the graph
            return
        hidden = output if isinstance(output, Tensor) else output[0]
        self._done += self._weights[block] * hidden[..., 0].numel()
        self.tell(min(1.0, self._done / self._total))
