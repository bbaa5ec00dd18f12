"""The norms over feature maps that VisualPrism can be built with."""

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


class SyncBatchNorm(nn.BatchNorm2d):
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
        count = values.new_full((1,), values.numel() / self.num_features)
        sums = torch.cat([values.sum(dim=(0, 2, 3)), values.square().sum(dim=(0, 2, 3)), count])
        if self.left_out:
            sums = sums * 0  # still a function of the maps: the backward pass has its collective as well
        total, total_squares, count = SumOverRanks.apply(sums).split([self.num_features] * 2 + [1])
        mean, variance = self._learn(total, total_squares, count)
        gain = self.weight * torch.rsqrt(variance + self.eps)
        shape = (1, -1, 1, 1)
        return ((values - mean.view(shape)) * gain.view(shape) + self.bias.view(shape)).to(maps.dtype)

    def _learn(self, total: Tensor, total_squares: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of all ranks' maps, float[C] each, which the running ones move towards.

        Where every rank is left out they are the running ones, which stay as they are.
        """
        any_counts = count > 0
        mean = total / count.clamp(min=1)
        variance = (total_squares / count.clamp(min=1) - mean.square()).clamp(min=0)
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp(min=1)
            momentum = self.momentum * any_counts
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum.to(self.running_mean.dtype))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum.to(self.running_var.dtype))
            self.num_batches_tracked.add_(any_counts.squeeze())
        mean = torch.where(any_counts, mean, self.running_mean)
        return mean, torch.where(any_counts, variance, self.running_var)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each position: no statistics of a batch."""

    def forward(self, maps: Tensor) -> Tensor:
        """float[B, C, G, G] to the same shape."""
        return super().forward(maps.movedim(1, -1)).movedim(-1, 1)


NORMS: dict[str, type[nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "sync_batch": SyncBatchNorm,
    "layer": ChannelNorm,
}
