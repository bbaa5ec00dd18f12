"""The norms over feature maps that VisualPrism can be built with."""

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor, nn


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics are those of all ranks' batches together, on any device.

    torch.nn.SyncBatchNorm runs on GPUs alone. The running statistics are the same on every rank, so that it
    does not matter which one saves.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """float[B, C, G, G] to the same shape."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(maps)
        values = maps.float()
        count = values.new_full((1,), values.numel() / self.num_features)
        sums = torch.cat([values.sum(dim=(0, 2, 3)), values.square().sum(dim=(0, 2, 3)), count])
        total, total_squares, count = dist_nn.all_reduce(sums).split([self.num_features] * 2 + [1])
        mean = total / count
        variance = (total_squares / count - mean.square()).clamp(min=0)
        with torch.no_grad():
            unbiased = variance * count / (count - 1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            self.num_batches_tracked.add_(1)
        gain = self.weight * torch.rsqrt(variance + self.eps)
        shape = (1, -1, 1, 1)
        return ((values - mean.view(shape)) * gain.view(shape) + self.bias.view(shape)).to(maps.dtype)


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
