"""How far a model has come with a batch while it generates the answers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer as TransformerBlock


class Meter:
    """Tells the share of a batch's arithmetic that is done, whenever a transformer block has run.

    On a CPU a batch may take a minute, most of it in the one pass over images and prompts that precedes the
    first token of an answer; so finished answers alone would say nothing for a minute. The arithmetic of a
    block is taken to be its weights times the positions that it sees. How many tokens the answers will take
    is not known: the longest allowed for the first batch, and as many as in the last batch from then on.
    What a compiled graph does is not counted.

    Args:
        max_new_tokens: longest answer, tokens.
        tell: is given the share, from 0 to 1 and never falling within a batch.
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
            num_rows: beams included.
            length: positions of the longest prompt.
            images: as process_images gives them.
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
        if torch.compiler.is_compiling():  # a compiled graph cannot tell, and is not to be broken for it
            return
        hidden = output if isinstance(output, Tensor) else output[0]
        self._done += self._weights[block] * hidden[..., 0].numel()
        self.tell(min(1.0, self._done / self._total))
