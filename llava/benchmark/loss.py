"""The cost of the training loss: the memory of its logits, and the Sinkhorn regulariser's share of a step.

The memory is that of only the loss, forward and backward, with --tokens labels and --vocabulary words. The
share is measured on steps of a Llama with random weights and the settings of both stages' scripts, with and
without the regulariser in turns.
"""

from __future__ import annotations

import argparse
from functools import partial

from llava.benchmark.packing import llama_config
from llava.benchmark.timing import add_measure_flags, headline, medians, peak_mib, provenance, table

# Maps a script to its labels a step and its settings of the regulariser
STAGES = {
    "pretrain.sh": (480, {"sinkhorn_beta": 0.5}),
    "finetune.sh": (
        1200,
        {"sinkhorn_beta": 0.2, "sinkhorn_tau_sd": 2.0, "sinkhorn_lambda": 0.1, "sinkhorn_iters": 20},
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=int, default=8192, help="labels for the measurement of memory")
    parser.add_argument(
        "--vocabulary", type=int, default=151936, help="vocabulary for the measurement of memory, in words"
    )
    parser.add_argument("--width", type=int, default=128, help="hidden width for the measurement of memory")
    parser.add_argument(
        "--hidden_size",
        type=int,
        default=576,
        help="width of the Llama that is timed; its vocabulary has 32,000 words",
    )
    parser.add_argument("--layers", type=int, default=12, help="layers of that Llama")
    add_measure_flags(parser, "--repeats")
    parser.set_defaults(run=run)


def loss_memory(tokens: int, vocabulary: int, width: int) -> float:
    """Return the peak GiB of language_loss, forward and backward; the head's weight gets no gradient."""
    import torch
    from torch import nn

    from llava.model.loss import language_loss
    from llava.model.multimodal_projector.builder import VisionFields

    head = nn.Linear(width, vocabulary, bias=False)
    head.weight.requires_grad_(False)
    rows = torch.randn(tokens, width, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,))

    def work() -> None:
        language_loss(rows, targets, head, VisionFields()).backward()

    return peak_mib(work, "cpu") / 2**10


def step_seconds(labels: int, settings: dict, args: argparse.Namespace) -> tuple[float, float]:
    """Return the median processor seconds of a step without and with the regulariser."""
    import torch
    from transformers import LlamaModel

    from llava.model.loss import language_loss
    from llava.model.multimodal_projector.builder import VisionFields

    torch.manual_seed(0)
    config = llama_config(args.hidden_size, args.layers)
    model = LlamaModel(config).train()
    head = torch.nn.Linear(args.hidden_size, config.vocab_size, bias=False)
    ids = torch.randint(config.vocab_size, (4, labels // 3))  # three quarters of the positions have labels
    targets = torch.randint(config.vocab_size, (labels,))

    def step(use: bool) -> None:
        fields = VisionFields(use_sinkhorn_lsd=use, **settings)
        hidden = model(ids, use_cache=False).last_hidden_state.flatten(0, 1)[:labels]
        language_loss(hidden, targets, head, fields).backward()

    calls = {use: partial(step, use) for use in (False, True)}
    seconds = medians(calls, args.repeats, "cpu", processor=True)
    return seconds[False], seconds[True]


def run(args: argparse.Namespace) -> None:
    """Print the memory of the loss and a table of the regulariser's share."""
    memory = loss_memory(args.tokens, args.vocabulary, args.width)
    logits = args.tokens * args.vocabulary * 4 / 2**30
    print(
        f"{headline(provenance('cpu', 'float32'))}.\n\n"
        f"The loss of {args.tokens} labels with a vocabulary of {args.vocabulary} words needs at most "
        f"{memory:.2f} GiB. All logits at once would need {logits:.2f} GiB, and softmax and gradient as much "
        "again each.\n"
    )
    rows = []
    for script, (labels, settings) in STAGES.items():
        without, with_it = step_seconds(labels, settings, args)
        rows.append([script, labels, f"{without:.2f}", f"{with_it:.2f}", f"{with_it / without - 1:.1%}"])
    columns = ["settings of", "labels a step", "without, s", "with the regulariser, s", "share"]
    print(table(columns, rows), end="")
