"""The mixture of several files in an epoch, each used as often as its weight says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llava.errors import UserError


@dataclass
class Mixture:
    """Several files, one after another, each passed over as often in an epoch as its weight says.

    The fraction of a weight is a random share of the file. The next epoch continues in the same random order
    where this one stopped, so that two epochs at 0.5 use the whole file once.

    Args:
        sizes: the number of items in each file.
        weights: passes over each file in an epoch; default 1 each.
    Raises:
        UserError: if an epoch has no item.
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
                f"--data_weights {self.weights} for files with {list(self.sizes)} records or shards make an "
                "empty epoch; raise them."
            )

    def __len__(self) -> int:
        """The number of items in one epoch."""
        return sum(self.counts)

    def indices(self, epoch: int) -> Tensor:
        """long[len(self)]: the items of an epoch, file by file; items are numbered through all files."""
        generator = torch.Generator().manual_seed(self.seed)
        parts, offset = [], 0
        for size, count in zip(self.sizes, self.counts, strict=True):
            order = torch.randperm(size, generator=generator)
            whole, rest = divmod(count, max(size, 1))
            drawn = order[(epoch * rest + torch.arange(rest)) % max(size, 1)]
            parts += [offset + torch.arange(size).repeat(whole), offset + drawn.sort().values]
            offset += size
        return torch.cat(parts)
