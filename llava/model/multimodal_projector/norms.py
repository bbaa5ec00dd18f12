"""The norms over feature maps that VisualPrism can be built with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SumOverRanks(torch.autograd.Function):
    """All-reduce, forward and backward; every rank must run both."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def sum_over_ranks(*vectors: Tensor) -> tuple[Tensor, ...]:
    """The sums of float[n] over all ranks, in one reduction."""
    return SumOverRanks.apply(torch.cat(vectors)).split([len(vector) for vector in vectors])


class BatchNorm(nn.BatchNorm2d):
    """Batch norm with the right gradient for a single image.

    On the CPU torch (2.13) takes the gradient of one image in channels-last order for one in channels-first
    order, and so gives each position another's.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """float[B, C, G, G] to the same shape."""
        output = super().forward(maps)
        if output.requires_grad and len(maps) == 1 and maps.device.type == "cpu":
            output.register_hook(torch.Tensor.contiguous)
        return output


class SyncBatchNorm(BatchNorm):
    """Batch norm whose statistics are those of all ranks' batches together, on any device.

    torch.nn.SyncBatchNorm runs on GPUs alone. The running statistics are the same on every rank, so that it
    does not matter which one saves. Where `left_out` is set, this rank's maps are normalised and take part
    in the collectives, and count for nothing in the statistics.
    """

    left_out = False

    def forward(self, maps: Tensor) -> Tensor:
        """float[B, C, G, G] to the same shape."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(maps)
        values = maps.float()
        # A factor, not a branch: the backward pass has its collectives either way
        counts = 0.0 if self.left_out else 1.0
        count = values.new_full((1,), counts * values.numel() / self.num_features)
        total, count = sum_over_ranks(values.sum(dim=(0, 2, 3)) * counts, count)
        any_counts, shape = count > 0, (1, -1, 1, 1)
        mean = torch.where(any_counts, total / count.clamp(min=1), self.running_mean)
        centred = values - mean.view(shape)
        # Around the mean, in a second reduction: squares less the mean's square would cancel
        (squares,) = sum_over_ranks(centred.square().sum(dim=(0, 2, 3)) * counts)
        variance = torch.where(any_counts, squares / count.clamp(min=1), self.running_var)
        self._learn(mean, squares / (count - 1).clamp(min=1), any_counts)
        gain = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * gain.view(shape) + self.bias.view(shape)).to(maps.dtype)

    @torch.no_grad()
    def _learn(self, mean: Tensor, unbiased_variance: Tensor, any_counts: Tensor) -> None:
        """Move the running statistics, unless every rank is left out."""
        momentum = (self.momentum * any_counts).to(self.running_mean.dtype)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), momentum)
        self.num_batches_tracked.add_(any_counts.squeeze())


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each position: no statistics of a batch."""

    def forward(self, maps: Tensor) -> Tensor:
        """float[B, C, ...], as a rule float[B, C, G, G], to the same shape."""
        return super().forward(maps.movedim(1, -1)).movedim(-1, 1)


NORMS: dict[str, type[nn.Module]] = {
    "batch": BatchNorm,
    "sync_batch": SyncBatchNorm,
    "layer": ChannelNorm,
}


@contextmanager
def kept_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms inside learn no statistics from what passes through within the block."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        if isinstance(norm, SyncBatchNorm):
            norm.left_out = True  # what the other ranks send counts
        else:
            norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if isinstance(norm, SyncBatchNorm):
                norm.left_out = False
