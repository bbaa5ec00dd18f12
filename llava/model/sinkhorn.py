"""The Sinkhorn regulariser: entropic optimal transport (Cuturi 2013) from predictions to labels."""

# N labelled positions, V vocabulary

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

FLOOR = 1e-12  # keeps the kernel and its sums above 0
ROWS_AT_ONCE = 16  # rows of the float32[rows, V] scratch, which then fits into a processor's cache


class TargetProbabilities(torch.autograd.Function):
    """S = softmax(logits / tau) in float32 at the N target tokens only: float32[N, N], S[i, targets[j]].

    It works on blocks of rows, so that no [N, V] tensor exists beside the logits and their gradient.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, tau: float) -> Tensor:
        totals, probabilities = [], []
        for rows in logits.split(ROWS_AT_ONCE):
            scaled = rows.float() / tau
            total = scaled.logsumexp(dim=1, keepdim=True)
            totals.append(total)
            probabilities.append((scaled[:, targets] - total).exp_())
        probabilities = torch.cat(probabilities)
        ctx.save_for_backward(logits, targets, torch.cat(totals), probabilities)
        ctx.tau = tau
        return probabilities

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        logits, targets, totals, probabilities = ctx.saved_tensors
        weighted = grad * probabilities / ctx.tau
        grad_logits = torch.empty_like(logits)
        for start in range(0, logits.shape[0], ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            softmax = torch.add(-totals[rows], logits[rows].float(), alpha=1 / ctx.tau).exp_()
            softmax.mul_(-weighted[rows].sum(dim=1, keepdim=True)).index_add_(1, targets, weighted[rows])
            grad_logits[rows] = softmax
        return grad_logits, None, None


def sinkhorn_lsd(logits: Tensor, targets: Tensor, tau: float, entropy: float, iters: int) -> Tensor:
    """Mean cost of the entropic transport plan between predictions and labels (SPEC 4).

    The cost of moving prediction i to label j is the L1 distance of softmax(logits[i] / tau) from the one-hot
    label, 2 * (1 - S[i, targets[j]]). The plan is a constant for the backward pass: the gradient of an
    optimal transport cost is its plan.

    Args:
        logits: float[N, V], N at least 1.
        targets: long[N].
        tau: temperature of the softmax.
        entropy: lambda of the kernel exp(-cost / lambda).
        iters: rounds of row, then column normalisation.
    Returns:
        float32[].
    """
    cost = 2 * (1 - TargetProbabilities.apply(logits, targets, tau)).T
    with torch.no_grad():
        plan = torch.exp(-cost / entropy).clamp_(min=FLOOR)
        for _ in range(iters):
            plan /= plan.sum(dim=1, keepdim=True) + FLOOR
            plan /= plan.sum(dim=0, keepdim=True) + FLOOR
    return (plan * cost).sum() / targets.numel() ** 2
