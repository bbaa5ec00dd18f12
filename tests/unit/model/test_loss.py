"""The loss, compared with plain cross-entropy; the regulariser, with its golden file; memory of both."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode

from llava.model import loss as loss_module
from llava.model.loss import language_loss, token_sums
from llava.model.sinkhorn import sinkhorn_lsd

WIDTH, VOCABULARY = 24, 101


def config(**changes):
    settings = {
        "use_sinkhorn_lsd": False,
        "sinkhorn_alpha_ce": 0.7,
        "sinkhorn_beta": 0.5,
        "sinkhorn_tau_sd": 2.2,
        "sinkhorn_lambda": 0.12,
        "sinkhorn_iters": 16,
        "sinkhorn_max_tokens": 768,
    }
    return SimpleNamespace(**{**settings, **changes})


def inputs(count=50, bias=True):
    torch.manual_seed(0)
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=bias)
    return torch.randn(count, WIDTH, requires_grad=True), torch.randint(0, VOCABULARY, (count,)), head


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


def plain_lsd(logits, targets, tau, entropy, iters):
    """SPEC 4 literally, with whole matrices."""
    probabilities = torch.softmax(logits.float() / tau, dim=1)
    count = targets.numel()
    cost = torch.stack([2 * (1 - probabilities[:, target]) for target in targets])
    plan = torch.exp(-cost.detach() / entropy).clamp(min=1e-12)
    for _ in range(iters):
        plan = plan / (plan.sum(1, keepdim=True) + 1e-12)
        plan = plan / (plan.sum(0, keepdim=True) + 1e-12)
    return (plan * cost).sum() / count**2


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("at_once", [1, 7, 50, 1000])
@pytest.mark.parametrize("num_items", [None, torch.tensor(80), 80])
def test_loss_and_gradients_are_those_of_plain_cross_entropy(monkeypatch, at_once, bias, num_items):
    monkeypatch.setattr(loss_module, "MAX_LOGITS", at_once * VOCABULARY)
    rows, targets, head = inputs(bias=bias)
    divisor = targets.numel() if num_items is None else 80
    expected = F.cross_entropy(head(rows), targets, reduction="sum") / divisor
    found = language_loss(rows, targets, head, config(), num_items)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    wanted = (rows, *head.parameters())
    for one, other in zip(gradients(3 * found, *wanted), gradients(3 * expected, *wanted), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_frozen_head_gets_no_gradient_and_passes_one_on():
    rows, targets, head = inputs()
    head.requires_grad_(False)
    language_loss(rows, targets, head, config()).backward()
    assert head.weight.grad is None
    assert rows.grad.abs().max() > 0


def test_without_a_label_the_loss_is_zero_and_everything_has_a_gradient():
    rows, targets, head = inputs(count=0)
    loss = language_loss(rows, targets, head, config(use_sinkhorn_lsd=True))
    loss.backward()
    assert loss == 0
    assert head.weight.grad.abs().max() == 0
    assert rows.grad.shape == (0, WIDTH)


def test_under_autocast_the_head_multiplies_in_the_compute_dtype():
    rows, targets, head = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        expected = F.cross_entropy(head(rows).float(), targets)
        found = language_loss(rows, targets, head, config())
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        gradients(found, rows, head.weight), gradients(expected, rows, head.weight), strict=True
    ):
        assert one.dtype == other.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=1e-3, rtol=2e-2)


@pytest.mark.parametrize("case", range(4))
def test_the_regulariser_is_the_golden_one(golden, case):
    with safe_open(golden / "sinkhorn_lsd.safetensors", "pt") as file:
        logits, labels = (file.get_tensor(f"{name}{case}") for name in ("logits", "labels"))
        expected = file.get_tensor(f"loss{case}")
        settings = json.loads(file.metadata()[str(case)])
    labelled = labels != -100  # these are shifted already
    if not labelled.any():
        assert expected == 0  # language_loss leaves it out in this case, as tested above
        return
    found = sinkhorn_lsd(
        logits[labelled], labels[labelled], settings["tau"], settings["lam"], settings["iters"]
    )
    torch.testing.assert_close(found.reshape(1), expected, atol=1e-6, rtol=1e-5)


def test_the_regularisers_gradient_is_the_plain_forms_with_the_plan_held():
    torch.manual_seed(0)
    logits = (3 * torch.randn(150, VOCABULARY)).requires_grad_()
    targets = torch.randint(0, 10, (150,))  # the same word several times
    found, expected = sinkhorn_lsd(logits, targets, 2.2, 0.12, 16), plain_lsd(logits, targets, 2.2, 0.12, 16)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, logits)[0], gradients(expected, logits)[0])


@pytest.mark.parametrize("at_once", [7, 1000])
def test_the_total_is_alpha_times_cross_entropy_plus_beta_times_the_regulariser(monkeypatch, at_once):
    monkeypatch.setattr(loss_module, "MAX_LOGITS", at_once * VOCABULARY)
    rows, targets, head = inputs()
    logits = head(rows)
    lsd = plain_lsd(logits, targets, 2.2, 0.12, 16)
    expected = 0.7 * F.cross_entropy(logits, targets) + 0.5 * lsd
    found = language_loss(rows, targets, head, config(use_sinkhorn_lsd=True))
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        gradients(found, rows, head.weight), gradients(expected, rows, head.weight), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    half = language_loss(rows, targets, head, config(use_sinkhorn_lsd=True), num_items=2 * targets.numel())
    torch.testing.assert_close(half, expected / 2)


def test_beyond_max_tokens_a_random_sample_is_regularised():
    rows, targets, head = inputs()
    settings = config(use_sinkhorn_lsd=True, sinkhorn_max_tokens=20, sinkhorn_alpha_ce=0.0)
    torch.manual_seed(5)
    found = language_loss(rows, targets, head, settings)
    torch.manual_seed(5)
    sample = torch.randperm(50)[:20]
    expected = 0.5 * plain_lsd(head(rows[sample]), targets[sample], 2.2, 0.12, 16)
    torch.testing.assert_close(found, expected)
    assert language_loss(rows, targets, head, settings) != found


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes, and how often each size is made."""

    def __init__(self):
        super().__init__()
        self.numel = 0
        self.count = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
                self.count[tensor.numel()] = self.count.get(tensor.numel(), 0) + 1
        return result


def test_no_tensor_is_larger_than_the_logits_held_at_once(monkeypatch):
    monkeypatch.setattr(loss_module, "MAX_LOGITS", 8 * VOCABULARY)
    rows, targets, head = inputs(count=400)
    with Largest() as largest:
        language_loss(rows, targets, head, config()).backward()
    assert largest.numel == max(rows.numel(), head.weight.numel())  # their gradients
    assert largest.numel < 400 * VOCABULARY


def test_the_regulariser_makes_no_second_tensor_of_the_logits_size_but_their_gradient():
    torch.manual_seed(0)
    logits = torch.randn(300, 5000, requires_grad=True)
    with Largest() as largest:
        sinkhorn_lsd(logits, torch.randint(0, 5000, (300,)), 2.2, 0.12, 16).backward()
    assert largest.numel == logits.numel()
    assert largest.count[logits.numel()] <= 2  # the gradient is made once, and then given to the leaf


@pytest.mark.parametrize("at_once", [7, 50])
def test_a_validation_adds_up_what_all_logits_at_once_give(monkeypatch, at_once):
    monkeypatch.setattr(loss_module, "MAX_LOGITS", at_once * VOCABULARY)
    rows, targets, head = inputs()
    logits = head(rows)
    targets[:20] = logits[:20].argmax(dim=1)
    right = (logits.argmax(dim=1) == targets).sum().item()
    with torch.no_grad():
        loss, count, num_right = token_sums(rows, targets, head).tolist()
    assert (count, num_right) == (50, right)
    assert loss == pytest.approx(F.cross_entropy(logits, targets, reduction="sum").item())
    assert token_sums(rows[:0], targets[:0], head).tolist() == [0, 0, 0]
