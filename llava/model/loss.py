"""The loss at labelled positions, in training and validation, without the logits of a whole batch at once."""

# N labelled positions of a batch, n of them at once, D model width, V vocabulary

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from llava.model.sinkhorn import sinkhorn_lsd
from llava.model.vision_config import CommonFields

# The most logits held at once. With what their loss needs in float32 as well, they take about 1.2 GB.
MAX_LOGITS = 2**26

# Some of the N rows, and the function from their logits float[n, V] and targets long[n] to their loss
Part = tuple[slice, Callable[[Tensor, Tensor], Tensor]]


class HeadLoss(torch.autograd.Function):
    """The sum of losses over parts of the rows; a part's logits are computed, differentiated and dropped.

    The weight is read only in the forward pass. Under ZeRO-3 reading gathers it from all ranks; this way the
    ranks may have different numbers of parts.
    """

    @staticmethod
    def forward(
        ctx, rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, parts: list[Part]
    ) -> Tensor:
        device = rows.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype
        inputs, matrix = rows.to(dtype), weight.to(dtype)
        offset = None if bias is None else bias.to(dtype)
        grad_rows, grad_weight, grad_bias = ctx.grads = [
            torch.zeros_like(tensor) if wanted else None
            for tensor, wanted in zip((rows, weight, bias), ctx.needs_input_grad[:3], strict=True)
        ]
        total = torch.zeros((), device=rows.device)
        for index, loss_of in parts:
            logits = F.linear(inputs[index], matrix, offset).requires_grad_()
            with torch.enable_grad(), torch.autocast(device, enabled=False):
                loss = loss_of(logits, targets[index])
            total += loss.detach()
            if not any(ctx.needs_input_grad):
                continue
            (grad_logits,) = torch.autograd.grad(loss, logits)
            if grad_rows is not None:
                grad_rows[index] += (grad_logits @ matrix).to(grad_rows.dtype)
            if grad_weight is not None:
                grad_weight += (grad_logits.T @ inputs[index]).to(grad_weight.dtype)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(dim=0).to(grad_bias.dtype)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        grads, ctx.grads = ctx.grads, None
        assert grads is not None, "the backward pass of a loss can run only once"
        return *(None if part is None else part.mul_(grad) for part in grads), None, None


@torch.compiler.disable
def language_loss(
    rows: Tensor,
    targets: Tensor,
    head: nn.Linear,
    config: CommonFields,
    num_items: Tensor | int | None = None,
) -> Tensor:
    """Mean cross-entropy at the labels, plus the Sinkhorn regulariser if config asks for it.

    Args:
        rows: float[N, D], hidden states of the positions before the labels.
        targets: long[N]. If N is 0, the loss is 0, and the rank still takes part in every collective.
        head: the language model's output layer.
        config: use_sinkhorn_lsd and sinkhorn_* are read.
        num_items: the number of labels in the whole optimiser step, if its batches are accumulated; by
            default N. The regulariser, a mean over a batch, is weighted by the batch's share of them.
    Returns:
        float32[].
    """
    count = targets.numel()
    divisor = max(count, 1) if num_items is None else num_items
    alpha = config.sinkhorn_alpha_ce if config.use_sinkhorn_lsd else 1.0

    def cross_entropy(logits: Tensor, chosen: Tensor) -> Tensor:
        return alpha * F.cross_entropy(logits.float(), chosen, reduction="sum") / divisor

    def regulariser(logits: Tensor, chosen: Tensor) -> Tensor:
        lsd = sinkhorn_lsd(
            logits, chosen, config.sinkhorn_tau_sd, config.sinkhorn_lambda, config.sinkhorn_iters
        )
        return config.sinkhorn_beta * lsd * (count / divisor)

    at_once = max(1, MAX_LOGITS // head.weight.shape[0])
    starts = range(0, count, at_once)
    parts: list[Part] = []
    if config.use_sinkhorn_lsd and count:
        order = torch.randperm(count, device=rows.device)
        rows, targets = rows[order], targets[order]  # so that the first rows are a random sample
        sample = slice(0, min(count, config.sinkhorn_max_tokens))
        if sample.stop <= at_once:  # then cross-entropy uses the sample's logits as well
            parts = [(sample, lambda *part: cross_entropy(*part) + regulariser(*part))]
            starts = range(sample.stop, count, at_once)
        else:
            parts = [(sample, regulariser)]
    parts += [(slice(start, start + at_once), cross_entropy) for start in starts]
    return HeadLoss.apply(rows, head.weight, head.bias, targets, parts)


@torch.compiler.disable
def token_sums(rows: Tensor, targets: Tensor, head: nn.Linear) -> Tensor:
    """The sums that validation adds up over its batches; at most MAX_LOGITS logits are held at once.

    Args:
        rows, targets, head: as language_loss takes them.
    Returns:
        float64[3]: the sum of cross-entropies, the number of targets, and how many have the highest logit.
    """
    weight, bias = head.weight, head.bias  # read once: see HeadLoss
    at_once = max(1, MAX_LOGITS // weight.shape[0])
    sums = torch.zeros(3, dtype=torch.double, device=rows.device)
    for part, chosen in zip(rows.split(at_once), targets.split(at_once), strict=True):
        logits = F.linear(part, weight, bias).float()
        sums[0] += F.cross_entropy(logits, chosen, reduction="sum")
        sums[1] += len(chosen)
        sums[2] += (logits.argmax(dim=1) == chosen).sum()
    return sums
