"""Samplers that order an epoch's records: at random, or in batches of one modality and similar lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from llava.data.mixture import Mixture
from llava.errors import UserError

MAX_POOL = 50  # megabatches sorted together: enough for similar lengths, few enough for a random order


class MixtureSampler(Sampler[int]):
    """Yields an epoch's records in random order, which depends only on the mixture's seed and the epoch.

    Args:
        shuffle: False keeps the order of the files.
    """

    def __init__(self, mixture: Mixture, shuffle: bool = True):
        self.mixture = mixture
        self.shuffle = shuffle
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.mixture)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order; a resumed run gets the same order for the same epoch."""
        self.epoch = epoch

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.mixture.seed + self.epoch)

    def __iter__(self) -> Iterator[int]:
        indices = self.mixture.indices(self.epoch)
        if self.shuffle:
            indices = indices[torch.randperm(len(indices), generator=self._generator())]
        yield from indices.tolist()


class ModalityLengthGroupedSampler(MixtureSampler):
    """Yields megabatches in random order, each of one modality and of records of similar lengths.

    A megabatch holds the records of one step on all processes: `world_size` batches of `batch_size`, which
    accelerate gives to the processes one by one. Long and short records are spread evenly over its batches.
    The rest of each modality, which fills no megabatch, comes last, images first, so that at most one
    megabatch is mixed.

    Args:
        mixture: the mixture of the records.
        lengths: one for each record, never 0, negative for text only: `SupervisedDataset.modality_lengths`;
            or `SupervisedDataset.lengths`, to group only by length.
        batch_size: samples that a process takes at once.
        world_size: batches in a step, which is processes times accumulation.
    """

    def __init__(
        self, mixture: Mixture, lengths: Sequence[int] | Tensor, batch_size: int, world_size: int = 1
    ):
        super().__init__(mixture)
        if batch_size < 1 or world_size < 1:
            raise UserError(
                f"batch_size and world_size must be at least 1, got {batch_size} and {world_size}."
            )
        self.lengths = torch.as_tensor(lengths, dtype=torch.long)
        if (self.lengths == 0).any():
            raise UserError(
                "lengths must not be 0: the sign is + for a sample with images, and - for one without."
            )
        assert len(lengths) == sum(mixture.sizes)
        self.world_size = world_size
        self.megabatch_size = batch_size * world_size

    def __iter__(self) -> Iterator[int]:
        generator = self._generator()
        indices = self.mixture.indices(self.epoch)
        is_text = self.lengths[indices] < 0
        with_image, image_rest = self._megabatches(indices[~is_text], generator)
        text_only, text_rest = self._megabatches(indices[is_text], generator)
        megabatches = torch.cat([with_image, text_only])
        megabatches = megabatches[torch.randperm(len(megabatches), generator=generator)]
        # batch r of W takes each W-th record of a megabatch, from the r-th on
        batch_size = self.megabatch_size // self.world_size
        by_process = megabatches.view(-1, batch_size, self.world_size).transpose(1, 2)
        yield from torch.cat([by_process.flatten(), image_rest, text_rest]).tolist()

    def _megabatches(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One modality's whole megabatches, one a row, longest records first; and the indices left over."""
        indices = indices[torch.randperm(len(indices), generator=generator)]
        size = self.megabatch_size
        num_whole = len(indices) // size
        whole, rest = indices[: num_whole * size], indices[num_whole * size :]
        # if possible four pools or more, so that batches differ between epochs in a small set as well
        pool_size = size * max(1, min(num_whole // 4, MAX_POOL))
        pools = [
            pool[self.lengths[pool].abs().argsort(descending=True, stable=True)]
            for pool in whole.split(pool_size)
        ]
        return torch.cat(pools).view(-1, size), rest
