"""The GPU memory of the training loss: logits exist in parts, and never for all positions at once."""

# N labels, V vocabulary, D width

from __future__ import annotations

import copy

import pytest
import tiny
import torch
import torch.nn.functional as F
from measures import assert_near

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model import loss as loss_module
from llava.model.loss import MAX_LOGITS, language_loss
from llava.model.multimodal_projector.builder import VisionFields

N, V, D = 8192, 151_936, 512  # Qwen2's vocabulary
# Values for each logit: itself, its float32 copy, log-softmax, and in the backward pass the gradients of the
# last two
BYTES_A_LOGIT = {torch.float32: 4 + 0 + 4 + 4 + 4, torch.bfloat16: 2 + 4 + 4 + 4 + 4}
SLACK = 2**26  # the allocator's rounding and the libraries' workspaces


def peak(work) -> int:
    """The largest number of bytes that `work` allocates beyond those before."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("use_sinkhorn_lsd", [False, True], ids=["cross-entropy", "regularised"])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_the_peak_is_that_of_the_logits_held_at_once(cuda, autocast, use_sinkhorn_lsd):
    """For the loss and the gradients of rows and weight. All logits in float32 would need 4.6 GiB."""
    head = torch.nn.Linear(D, V, bias=False, device=cuda)
    rows = torch.randn(N, D, device=cuda, requires_grad=True)
    targets = torch.randint(V, (N,), device=cuda)
    fields = VisionFields(use_sinkhorn_lsd=use_sinkhorn_lsd)
    dtype = torch.bfloat16 if autocast else torch.float32

    def work() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            loss = language_loss(rows, targets, head, fields)
        loss.backward()
        assert loss.isfinite()

    work()  # libraries allocate their workspace
    rows.grad = head.weight.grad = None
    logits = BYTES_A_LOGIT[dtype] * MAX_LOGITS
    if use_sinkhorn_lsd:  # its sample is a part of its own, of which only the logits and their gradient exist
        assert fields.sinkhorn_max_tokens > MAX_LOGITS // V
        logits = max(logits, 2 * dtype.itemsize * fields.sinkhorn_max_tokens * V)
    # The gradients; for the weight also that of a part before it is added; in bfloat16 both matrices again
    matrices = 4 * (2 * V * D + 3 * N * D) + (2 * 2 * (V * D + N * D) if autocast else 0)
    bound = logits + matrices + SLACK
    taken = peak(work)
    print(f"{taken / 2**30:.2f} GiB, bound {bound / 2**30:.2f} GiB")
    assert taken <= bound
    assert bound < 4 * N * V


def test_a_training_step_makes_no_logits_of_the_whole_batch(cuda, tmp_path, monkeypatch):
    vocabulary, length, batch = 32_000, 512, 8
    monkeypatch.setattr(loss_module, "MAX_LOGITS", 2**22)
    model = tiny.build(tmp_path, vocab_size=vocabulary).to(cuda).train()
    ids = torch.randint(5, vocabulary, (batch, length))
    ids[:, 1] = IMAGE_TOKEN_INDEX
    inputs = {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids).bool()}
    inputs["labels"][:, :4] = -100
    images = torch.randn(batch, 3, 56, 56, device=cuda)

    def work() -> None:
        model(**inputs, images=images).loss.backward()

    work()
    assert peak(work) < 4 * vocabulary * length * batch / 2


def test_the_loss_by_parts_is_plain_cross_entropy(device, monkeypatch):
    """With gradients, on the device, in several parts, with and without autocast."""
    monkeypatch.setattr(loss_module, "MAX_LOGITS", 100 * 1000)
    head = torch.nn.Linear(64, 1000, bias=True, device=device)
    plain = copy.deepcopy(head)
    rows = torch.randn(350, 64, device=device, requires_grad=True)
    targets = torch.randint(1000, (350,), device=device)
    for autocast, bound in ((False, 1e-5), (True, 3e-2)):
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            found = language_loss(rows, targets, head, VisionFields())
        expected = F.cross_entropy(plain(rows), targets)
        assert_near(found, expected, bound, "the loss")
        pairs = zip(
            torch.autograd.grad(found, (rows, *head.parameters())),
            torch.autograd.grad(expected, (rows, *plain.parameters())),
            strict=True,
        )
        for name, (one, other) in zip(("rows", "weight", "bias"), pairs, strict=True):
            assert_near(one, other, bound, f"the gradient of {name}")
