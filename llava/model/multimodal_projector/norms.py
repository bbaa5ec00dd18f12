"""The norms over feature maps that VisualPrism can be built with, and the norm of a projector's output."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init


class NormOverRanks(torch.autograd.Function):
    """Normalise by the mean and the variance of all ranks' maps, with one collective call in each pass.

    Every rank must run the forward and the backward pass. The ranks' moments are combined as in Chan, Golub
    and LeVeque 1983, "Algorithms for Computing the Sample Variance". Nothing waits for the device.
    """

    @staticmethod
    def forward(
        ctx,
        maps: Tensor,
        weight: Tensor,
        bias: Tensor,
        earlier: tuple[Tensor, Tensor],
        eps: float,
        counts: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns normalised maps, and over all ranks mean float32[C], variance float32[C], count float32[1].

        Args:
            maps: float[B, C, G, G].
            earlier: mean and variance to use where no rank counts.
            counts: whether this rank's maps enter the statistics.
        """
        values = maps.float()
        variance, mean = torch.var_mean(values, dim=(0, 2, 3), correction=0)
        number = mean.new_full((1,), values.numel() / len(mean) if counts else 0.0)
        local = torch.cat([mean, variance, number])
        ranks = local.new_empty(dist.get_world_size(), len(local))
        dist.all_gather(list(ranks.unbind()), local)
        means, variances, numbers = ranks.split([len(mean), len(mean), 1], dim=1)
        count = numbers.sum(dim=0)
        shares = numbers / count.clamp(min=1)
        mean = (shares * means).sum(dim=0)
        variance = (shares * (variances + (means - mean).square())).sum(dim=0)
        mean, variance = (
            torch.where(count > 0, now, old) for now, old in zip((mean, variance), earlier, strict=True)
        )
        scale = torch.rsqrt(variance + eps)
        ctx.save_for_backward(maps, weight, mean, scale, count)
        ctx.counts = counts
        ctx.mark_non_differentiable(mean, variance, count)
        output = (values - _by_channel(mean)) * _by_channel(scale * weight) + _by_channel(bias)
        return output.to(maps.dtype), mean, variance, count

    @staticmethod
    def backward(ctx, gradient: Tensor, *_) -> tuple[Tensor | None, ...]:
        maps, weight, mean, scale, count = ctx.saved_tensors
        gradient = gradient.float()
        normalised = (maps.float() - _by_channel(mean)) * _by_channel(scale)
        bias_gradient = gradient.sum(dim=(0, 2, 3))
        weight_gradient = (gradient * normalised).sum(dim=(0, 2, 3))
        sums = torch.cat([bias_gradient, weight_gradient])
        dist.all_reduce(sums)
        if ctx.counts:  # the mean and the variance depend on this rank's maps
            from_mean, from_variance = (sums / count.clamp(min=1)).chunk(2)
            gradient = gradient - _by_channel(from_mean) - normalised * _by_channel(from_variance)
        gradient = gradient * _by_channel(scale * weight)
        return gradient.to(maps.dtype), weight_gradient, bias_gradient, None, None, None


def _by_channel(vector: Tensor) -> Tensor:
    return vector.view(1, -1, 1, 1)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm with the right gradient for one image; its running statistics stay where `left_out` is set.

    On the CPU torch (2.13) mistakes the gradient of one image in channels-last order for one in
    channels-first order, so each position gets the gradient of another.
    """

    left_out = False

    def forward(self, maps: Tensor) -> Tensor:
        """float[B, C, G, G] to the same shape."""
        momentum = self.momentum
        self.momentum = 0.0 if self.left_out else momentum
        output = super().forward(maps)
        self.momentum = momentum
        if output.requires_grad and len(maps) == 1 and maps.device.type == "cpu":
            output.register_hook(torch.Tensor.contiguous)
        return output


class SyncBatchNorm(BatchNorm):
    """Batch norm whose statistics are those of all ranks' batches together, on any device.

    torch.nn.SyncBatchNorm runs only on GPUs and waits for them in each call. The running statistics are the
    same on every rank, so it does not matter which rank saves them. Where `left_out` is set, this rank's maps
    are normalised and take part in the collectives, but do not enter the statistics.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """float[B, C, G, G] to the same shape."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(maps)
        earlier = (self.running_mean.float(), self.running_var.float())
        output, mean, variance, count = NormOverRanks.apply(
            maps, self.weight, self.bias, earlier, self.eps, not self.left_out
        )
        self._learn(mean, variance, count)
        return output

    @torch.no_grad()
    def _learn(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Update the running statistics, unless every rank is left out."""
        any_counts, unbiased = count > 0, variance * count / (count - 1).clamp(min=1)
        momentum = (self.momentum * any_counts).to(self.running_mean.dtype)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        self.num_batches_tracked.add_(any_counts.squeeze())


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each position, without batch statistics."""

    def forward(self, maps: Tensor) -> Tensor:
        """float[B, C, ...], usually float[B, C, G, G], to the same shape."""
        return super().forward(maps.movedim(1, -1)).movedim(-1, 1)


OUTPUT_EPS = 1e-12  # in a small new projector, the mean square of the tokens can be 1e-8
NORMS: dict[str, type[nn.Module]] = {"batch": BatchNorm, "sync_batch": SyncBatchNorm, "layer": ChannelNorm}


class OutputNorm(nn.Module):
    """Gives each visual token a root mean square (RMS) that does not depend on the maps before it.

    A token is divided by its RMS over the channels (Zhang and Sennrich 2019, "Root Mean Square Layer
    Normalization") and multiplied by the channels' gains, which are `scale * weight`. `weight` learns and
    starts at one. `scale` does not learn and is the RMS of the language model's embeddings, often about 0.02.
    Adam changes a parameter by about the learning rate in a step, whatever the parameter's size. So a
    parameter that starts at 0.02 itself would change by a twentieth in each step at a rate of 1e-3.

    Args:
        width: D.
    """

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.register_buffer("scale", torch.ones(()))

    def reset_parameters(self) -> None:
        init.ones_(self.weight)
        init.ones_(self.scale)

    @torch.no_grad()
    def scale_to(self, embeddings: Tensor) -> None:
        """Make the RMS of `embeddings`, float[words, D], that of the tokens; computed in float32."""
        size = torch.linalg.vector_norm(embeddings, dtype=torch.float32)
        self.scale.copy_(size / embeddings.numel() ** 0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """float[B, M, D] to the same shape and dtype; computed in float32."""
        normed = F.rms_norm(tokens.float(), tokens.shape[-1:], eps=OUTPUT_EPS)
        return (normed * (self.scale.float() * self.weight.float())).to(tokens.dtype)


@contextmanager
def kept_statistics(module: nn.Module) -> Iterator[None]:
    """Within the block the batch norms of `module` do not update their running statistics."""
    norms = [part for part in module.modules() if isinstance(part, BatchNorm)]
    for norm in norms:
        norm.left_out = True
    try:
        yield
    finally:
        for norm in norms:
            norm.left_out = False
