"""What an epoch takes of several files: each as often as its weight says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llava.errors import UserError


@dataclass
class Mixture:
    """Several files, one after another, each passed over `weights` times an epoch.

    A weight's fraction is a share of the file drawn at random; the next epoch goes on where this one stopped
    in the same random order, so that two epochs at 0.5 see the whole file once.

    Args:
        sizes: items of each file.
        weights: passes over each file in an epoch; default 1 each.
    Raises:
        UserError: if no item is left.
    """

    sizes: Sequence[int]
    weights: Sequence[float] | None = None
    seed: int = 0
    counts: list[int] = field(init=False)

    def __post_init__(self):
        self.weights = list(self.weights or [1.0] * len(self.sizes))
        assert len(self.weights) == len(self.sizes)
        self.counts = [round(size * weight) for size, weight in zip(self.sizes, self.weights, strict=True)]
        if not sum(self.counts):
            raise UserError(
                f"--data_weights {self.weights} of files with {list(self.sizes)} records or shards leave "
                "none; raise them."
            )

    def __len__(self) -> int:
        """Items of one epoch."""
        return sum(self.counts)

    def indices(self, epoch: int) -> Tensor:
        """long[len(self)]: items of an epoch, file by file, counted over all files."""
        generator = torch.Generator().manual_seed(self.seed)
        parts, offset = [], 0
        for size, count in zip(self.sizes, self.counts, strict=True):
            order = torch.randperm(size, generator=generator)
            whole, rest = divmod(count, max(size, 1))
            drawn = order[(epoch * rest + torch.arange(rest)) % max(size, 1)]
            parts += [offset + torch.arange(size).repeat(whole), offset + drawn.sort().values]
            offset += size
        return torch.cat(parts)
