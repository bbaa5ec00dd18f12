"""An order of the records in which every step's batch has one modality and similar lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

MAX_POOL = 50  # megabatches sorted together: enough for like lengths, few enough to stay random


class ModalityLengthGroupedSampler(Sampler[int]):
    """Megabatches (what all processes take in one step) of one modality, of similar lengths, in random order.

    Every `world_size` batches of `batch_size` in a row go to the processes, one each, as accelerate deals
    them out; each gets its share of the long and the short. What is left of either modality comes last,
    images first, so that at most one megabatch is mixed. The order depends on the generator's seed and the
    epoch alone.

    Args:
        lengths: `SupervisedDataset.modality_lengths`: of each record, never 0, negative for text only.
        batch_size: samples a process takes in one step.
        generator: gives its seed alone; default: 0.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        world_size: int = 1,
        generator: torch.Generator | None = None,
    ):
        if batch_size < 1 or world_size < 1:
            raise ValueError(
                f"batch_size and world_size must be at least 1, got {batch_size} and {world_size}."
            )
        if any(length == 0 for length in lengths):
            raise ValueError("lengths must not be 0: their sign tells images (+) from text only (-).")
        self.lengths = torch.tensor(lengths, dtype=torch.long)
        self.world_size = world_size
        self.megabatch_size = batch_size * world_size
        self.seed = generator.initial_seed() if generator is not None else 0
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Choose another order; a resumed run gets the same one for the same epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        with_image, image_rest = self._megabatches(self.lengths > 0, generator)
        text_only, text_rest = self._megabatches(self.lengths < 0, generator)
        megabatches = with_image + text_only
        order = torch.randperm(len(megabatches), generator=generator).tolist()
        for index in order:
            for rank in range(self.world_size):
                yield from megabatches[index][rank :: self.world_size]
        yield from image_rest + text_rest

    def _megabatches(
        self, members: torch.Tensor, generator: torch.Generator
    ) -> tuple[list[list[int]], list[int]]:
        """One modality's whole megabatches, each longest first, and the indices left over."""
        indices = members.nonzero().flatten()
        indices = indices[torch.randperm(len(indices), generator=generator)]
        size = self.megabatch_size
        num_whole = len(indices) // size
        whole, rest = indices[: num_whole * size], indices[num_whole * size :]
        # at least four pools, so that batches differ between epochs in a small set as well
        pool_size = size * max(1, min(num_whole // 4, MAX_POOL))
        megabatches = []
        for pool in whole.split(pool_size):
            longest_first = pool[self.lengths[pool].abs().argsort(descending=True, stable=True)]
            megabatches += [megabatch.tolist() for megabatch in longest_first.split(size)]
        return megabatches, rest.tolist()
