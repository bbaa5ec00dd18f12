"""What the training loss takes: memory of its logits, and the Sinkhorn regulariser's share of a step.

The first is the loss alone, forward and backward, at --tokens labels of --vocabulary words. The second is
a step of a random Llama at the settings of both stages' scripts, with and without the regulariser in turns.
"""

# N labels, V vocabulary, D width

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone

# Labels a step, and the scripts' settings
STAGES = {
    "pretrain.sh": (480, {"sinkhorn_beta": 0.5}),
    "finetune.sh": (
        1200,
        {"sinkhorn_beta": 0.2, "sinkhorn_tau_sd": 2.0, "sinkhorn_lambda": 0.1, "sinkhorn_iters": 20},
    ),
}
POLL = 0.005  # seconds between two looks at the memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=int, default=8192, help="labels of the memory's measurement")
    parser.add_argument("--vocabulary", type=int, default=151936, help="its words")
    parser.add_argument("--width", type=int, default=128, help="its hidden width")
    parser.add_argument("--hidden_size", type=int, default=576, help="width of the Llama, of 32,000 words")
    parser.add_argument("--layers", type=int, default=12, help="its layers")
    parser.add_argument("--repeats", type=int, default=5, help="rounds in which the two steps take turns")
    parser.set_defaults(run=run)


def resident() -> int:
    """Bytes of main memory that this process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_memory(work: Callable[[], object]) -> float:
    """GiB of main memory that `work` takes at most beyond what is held before (Linux)."""
    before = peak = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(POLL):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return (peak - before) / 2**30


def loss_memory(tokens: int, vocabulary: int, width: int) -> float:
    """GiB of language_loss and its backward pass, the gradient of the head's weight not counted."""
    import torch
    from torch import nn

    from llava.model.loss import language_loss
    from llava.model.multimodal_projector.builder import VisionFields

    head = nn.Linear(width, vocabulary, bias=False)
    head.weight.requires_grad_(False)
    rows = torch.randn(tokens, width, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,))
    return peak_memory(lambda: language_loss(rows, targets, head, VisionFields()).backward())


def step_seconds(labels: int, settings: dict, args: argparse.Namespace) -> tuple[float, float]:
    """Medians of processor time of a step without and with the regulariser."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    from llava.model.loss import language_loss
    from llava.model.multimodal_projector.builder import VisionFields

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=args.hidden_size,
        intermediate_size=args.hidden_size * 8 // 3,
        num_hidden_layers=args.layers,
        num_attention_heads=max(args.hidden_size // 64, 1),
    )
    model = LlamaModel(config).train()
    head = torch.nn.Linear(args.hidden_size, config.vocab_size, bias=False)
    ids = torch.randint(config.vocab_size, (4, labels // 3))  # three quarters of the positions have labels
    targets = torch.randint(config.vocab_size, (labels,))

    def step(use: bool) -> float:
        fields = VisionFields(use_sinkhorn_lsd=use, **settings)
        start = time.process_time()
        hidden = model(ids, use_cache=False).last_hidden_state.flatten(0, 1)[:labels]
        language_loss(hidden, targets, head, fields).backward()
        return time.process_time() - start

    step(True)
    rounds = [(step(False), step(True)) for _ in range(args.repeats)]
    without, with_it = (statistics.median(column) for column in zip(*rounds, strict=True))
    return without, with_it


def run(args: argparse.Namespace) -> None:
    """Print both."""
    import torch

    memory = loss_memory(args.tokens, args.vocabulary, args.width)
    logits = args.tokens * args.vocabulary * 4 / 2**30
    print(
        f"`{' '.join(['python -m llava.benchmark', *sys.argv[1:]])}`, "
        f"{datetime.now(timezone.utc).date().isoformat()}: {torch.get_num_threads()} CPU threads, "
        f"{platform.machine()}, torch {torch.__version__}, float32.\n\n"
        f"Loss of {args.tokens} labels of {args.vocabulary} words: {memory:.2f} GiB at most. All logits at "
        f"once would be {logits:.2f} GiB, and as much again for each of softmax and gradient.\n\n"
        "| settings of | labels a step | without, s | with the regulariser, s | share |\n"
        "| --- | --- | --- | --- | --- |"
    )
    for script, (labels, settings) in STAGES.items():
        without, with_it = step_seconds(labels, settings, args)
        share = with_it / without - 1
        print(f"| {script} | {labels} | {without:.2f} | {with_it:.2f} | {share:.1%} |", flush=True)
