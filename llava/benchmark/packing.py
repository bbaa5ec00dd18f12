"""Tokens a second in training with padded, length-grouped and packed rows, at equal memory.

A Llama with random weights passes forward and backward over records of long-tailed lengths. Every batch has
the same number of rows of at most --max_length positions, so that no way may need more memory than another.
"""

from __future__ import annotations

import argparse
import random
import statistics
from functools import partial

from llava.benchmark.timing import add_measure_flags, headline, medians, provenance, table

VOCABULARY = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--records", type=int, default=256, help="number of records")
    parser.add_argument("--median", type=int, default=75, help="median length of the records in tokens")
    parser.add_argument(
        "--spread", type=float, default=0.9, help="sigma of the lengths' log-normal distribution"
    )
    parser.add_argument("--max_length", type=int, default=512, help="tokens in a row, as --model_max_length")
    parser.add_argument("--batch_size", type=int, default=16, help="rows in a batch")
    parser.add_argument("--hidden_size", type=int, default=384, help="width of the Llama")
    parser.add_argument("--layers", type=int, default=2, help="layers of the Llama")
    add_measure_flags(parser, "--repeats", repeats=3)
    parser.set_defaults(run=run)


def record_lengths(num_records: int, median: int, spread: float, max_length: int) -> list[int]:
    """Draw lengths that are log-normal, roughly as those of instruction data, and cut at max_length."""
    draw = random.Random(0)
    drawn = [round(median * draw.lognormvariate(0, spread)) for _ in range(num_records)]
    return [min(max(length, 8), max_length) for length in drawn]


def batches(lengths: list[int], batch_size: int, max_length: int) -> dict[str, list[list]]:
    """Return each way's batches. A batch is a list of rows; a row is a record or a list of records."""
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
    """Return a decoder's inputs for a batch of random tokens; positions restart at each packed record."""
    import torch

    from llava.data.collator import Collator
    from llava.model.packed_rows import packed_rows

    def sample(record: int) -> dict:
        ids = torch.randint(VOCABULARY, (lengths[record],))
        return {"name": str(record), "input_ids": ids, "labels": ids, "images": [], "image_sizes": []}

    rows = [sample(row) if isinstance(row, int) else [sample(record) for record in row] for row in batch]
    collated = Collator(pad_token_id=0)(rows)  # type: ignore[arg-type]
    inputs = {"input_ids": collated["input_ids"], "labels": collated["labels"]}
    if "sequence_ids" in collated:
        return {**inputs, "position_ids": packed_rows(collated["sequence_ids"]).position_ids}
    return {**inputs, "attention_mask": collated["attention_mask"]}


def llama_config(hidden_size: int, layers: int, **options):
    """Return the configuration of a Llama of this width and number of layers."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=max(hidden_size // 64, 1),
        **options,
    )


def run(args: argparse.Namespace) -> None:
    """Print a table with a row for each way."""
    import torch
    from transformers import LlamaForCausalLM

    lengths = record_lengths(args.records, args.median, args.spread, args.max_length)
    torch.manual_seed(0)
    config = llama_config(args.hidden_size, args.layers, vocab_size=VOCABULARY)
    model = LlamaForCausalLM(config).train()
    inputs = {
        name: [model_inputs(batch, lengths) for batch in batched]
        for name, batched in batches(lengths, args.batch_size, args.max_length).items()
    }

    def step_through(batched: list[dict]) -> None:
        for batch in batched:
            model(**batch, use_cache=False).loss.backward()
            model.zero_grad()

    calls = {name: partial(step_through, batched) for name, batched in inputs.items()}
    seconds = medians(calls, args.repeats, "cpu")
    print(
        f"{headline(provenance('cpu', 'float32'))}; {len(lengths)} records of {statistics.mean(lengths):.0f} "
        f"tokens on average, {max(lengths)} at most; batches of {args.batch_size} rows.\n"
    )
    rows = []
    for name, batched in inputs.items():
        filled = sum(lengths) / sum(batch["input_ids"].numel() for batch in batched)
        speed, ratio = sum(lengths) / seconds[name], seconds["padded"] / seconds[name]
        rows.append([name, len(batched), f"{filled:.0%}", f"{speed:,.0f}", f"{ratio:.2f}x"])
    columns = ["rows", "batches", "positions that are tokens", "tokens/s", "against padded"]
    print(table(columns, rows), end="")
