"""Training's tokens a second with padded, length-grouped and packed rows, at equal memory.

A random Llama passes over records of long-tailed lengths. Every batch has the same number of rows of at most
--max_length positions, so that no way may need more memory than another.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import sys
import time
from datetime import datetime, timezone

VOCABULARY = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--records", type=int, default=256, help="records of the set")
    parser.add_argument("--median", type=int, default=75, help="tokens of the median record")
    parser.add_argument("--spread", type=float, default=0.9, help="sigma of the log-normal lengths")
    parser.add_argument("--max_length", type=int, default=512, help="tokens of a row, model_max_length")
    parser.add_argument("--batch_size", type=int, default=16, help="rows of a batch")
    parser.add_argument("--hidden_size", type=int, default=384, help="width of the Llama")
    parser.add_argument("--layers", type=int, default=2, help="its layers")
    parser.add_argument("--repeats", type=int, default=3, help="rounds in which the ways take turns")
    parser.set_defaults(run=run)


def record_lengths(num_records: int, median: int, spread: float, max_length: int) -> list[int]:
    """Log-normal, as the lengths of instruction data roughly are, cut at max_length."""
    draw = random.Random(0)
    drawn = [round(median * draw.lognormvariate(0, spread)) for _ in range(num_records)]
    return [min(max(length, 8), max_length) for length in drawn]


def batches(lengths: list[int], batch_size: int, max_length: int) -> dict[str, list[list]]:
    """Each way's batches of rows: a record, or a list of records."""
    from llava.data.mixture import Mixture
    from llava.data.packing import pack
    from llava.data.sampler import ModalityLengthGroupedSampler

    shuffled = random.Random(0).sample(range(len(lengths)), len(lengths))
    ways: dict[str, list] = {
        "padded": shuffled,
        "padded, grouped by length": list(
            ModalityLengthGroupedSampler(Mixture([len(lengths)]), lengths, batch_size)
        ),
        "packed": list(pack(((record, lengths[record]) for record in shuffled), max_length)),
    }
    return {
        name: [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        for name, rows in ways.items()
    }


def model_inputs(batch: list, lengths: list[int]) -> dict:
    """A batch of random tokens as a decoder takes it: positions that restart tell packed records apart."""
    import torch

    from llava.data.collator import Collator
    from llava.model.multimodal_merge import positions_within

    def sample(record: int) -> dict:
        ids = torch.randint(VOCABULARY, (lengths[record],))
        return {"name": str(record), "input_ids": ids, "labels": ids, "images": [], "image_sizes": []}

    rows = [sample(row) if isinstance(row, int) else [sample(record) for record in row] for row in batch]
    collated = Collator(pad_token_id=0)(rows)  # type: ignore[arg-type]
    inputs = {"input_ids": collated["input_ids"], "labels": collated["labels"]}
    if "sequence_ids" in collated:
        return {**inputs, "position_ids": positions_within(collated["sequence_ids"])}
    return {**inputs, "attention_mask": collated["attention_mask"]}


def build_model(hidden_size: int, layers: int):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=max(hidden_size // 64, 1),
        vocab_size=VOCABULARY,
    )
    return LlamaForCausalLM(config).train()


def seconds(model, inputs: list[dict]) -> float:
    """Forward and backward over all batches."""
    start = time.perf_counter()
    for batch in inputs:
        model(**batch, use_cache=False).loss.backward()
        model.zero_grad()
    return time.perf_counter() - start


def run(args: argparse.Namespace) -> None:
    """Print a table with a row for each way."""
    import torch

    lengths = record_lengths(args.records, args.median, args.spread, args.max_length)
    model = build_model(args.hidden_size, args.layers)
    inputs = {
        name: [model_inputs(batch, lengths) for batch in batched]
        for name, batched in batches(lengths, args.batch_size, args.max_length).items()
    }
    rounds = [
        {name: seconds(model, batched) for name, batched in inputs.items()} for _ in range(args.repeats)
    ]
    print(
        f"`{' '.join(['python -m llava.benchmark', *sys.argv[1:]])}`, "
        f"{datetime.now(timezone.utc).date().isoformat()}: {torch.get_num_threads()} CPU threads, "
        f"{platform.machine()}, torch {torch.__version__}, float32; {len(lengths)} records of "
        f"{statistics.mean(lengths):.0f} tokens on average, {max(lengths)} at most; batches of "
        f"{args.batch_size} rows.\n\n"
        "| rows | batches | positions that are tokens | tokens/s | against padded |\n"
        "| --- | --- | --- | --- | --- |"
    )
    medians = {name: statistics.median(times[name] for times in rounds) for name in inputs}
    for name, batched in inputs.items():
        filled = sum(lengths) / sum(batch["input_ids"].numel() for batch in batched)
        print(
            f"| {name} | {len(batched)} | {filled:.0%} | {sum(lengths) / medians[name]:,.0f} "
            f"| {medians['padded'] / medians[name]:.2f}x |"
        )
