"""Training steps on records of which several are on one picture: packed, and with each picture shared.

A model of a known shape with random weights passes forward and backward over the same records. Its tower is
frozen; projector and language model learn. A record has --before_tokens, its picture, and text of log-normal
length, half of which has labels. Both ways take batches of the same number of rows of at most --max_length.
"""

from __future__ import annotations

import argparse
import random
from functools import partial
from itertools import chain

from llava.benchmark.packing import record_lengths
from llava.benchmark.speed.shapes import DEFAULT_DTYPE, IMAGE_SIZE, SHAPES
from llava.benchmark.timing import (
    add_measure_flags,
    check_place,
    default_device,
    headline,
    medians,
    provenance,
    publish,
    table,
)

PACKED, SHARED = "packed", "packed, pictures shared"
COLUMNS = ["records a picture", "rows", "batches", "positions", "pictures encoded", "records/s", "tokens/s"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--shape", choices=list(SHAPES), default="tiny", help="language model and tower")
    add("--layers", type=int, help="of the language model, where the machine holds no more")
    add("--projector", default="visualprism", help="a compressing type")
    add("--scale_factor", type=int, default=2)
    add("--records", type=int, default=24)
    add("--records_a_picture", type=int, nargs="+", default=[1, 3], help="each is measured")
    add("--before_tokens", type=int, default=35, help="of a record, ahead of its picture")
    add("--median", type=int, default=75, help="tokens after the picture, of the median record")
    add("--spread", type=float, default=0.9, help="sigma of their log-normal number")
    add("--max_length", type=int, default=1024, help="positions of a row, model_max_length")
    add("--batch_size", type=int, default=1, help="rows of a batch")
    add_measure_flags(parser, "--repeats", "--device", "--dtype", "--processor_time", repeats=3)
    add_measure_flags(parser, "--output_dir", "--docs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, write sharing.{md,json}."""
    import torch

    check_place(args.docs, "sharing")
    device = args.device or default_device()
    dtype = args.dtype or DEFAULT_DTYPE.get(args.shape, "bfloat16")
    model = build(args, device, getattr(torch, dtype))
    records = {share: make_records(args, share, model.num_visual_tokens) for share in args.records_a_picture}
    inputs = {}
    for share in records:
        for way in (PACKED, SHARED):
            packs = rows_of(records[share], way == SHARED, args.max_length)
            inputs[share, way] = [
                model_inputs(packs[start : start + args.batch_size], device, getattr(torch, dtype))
                for start in range(0, len(packs), args.batch_size)
            ]
    steps = {key: partial(step_through, model, batches) for key, batches in inputs.items()}
    seconds = medians(steps, args.repeats, device, args.processor_time)
    rows = [
        {"records_a_picture": share, "way": way}
        | figures(records[share], batches, seconds[share, way], model.num_visual_tokens)
        for (share, way), batches in inputs.items()
    ]
    about = provenance(device, dtype) | {"layers": model.config.num_hidden_layers, "rows": rows}
    publish(args, "sharing", about, as_markdown(rows, about, args))


def build(args: argparse.Namespace, device: str, dtype):
    """A model of the shape in training mode, as in stage 2."""
    from llava.benchmark.speed.models import build_model, build_variants

    model = build_model(SHAPES[args.shape].truncated(args.layers), device, dtype)
    build_variants(model, [args.projector], [args.scale_factor], dtype)[-1].put_into(model)
    model.config.tokenizer_padding_side = "right"
    model.get_vision_tower().requires_grad_(False)
    return model.train()


def make_records(args: argparse.Namespace, share: int, num_visual: int) -> list:
    """EncodedRecords of random words in random order, `share` on each picture, whose file is its number."""
    from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
    from llava.data.sample import EncodedRecord

    draw = random.Random(0)
    room = args.max_length - args.before_tokens - num_visual
    vocabulary = range(3, SHAPES[args.shape].vocabulary)
    before = draw.choices(vocabulary, k=args.before_tokens)
    records = []
    for number, length in enumerate(record_lengths(args.records, args.median, args.spread, room)):
        words = draw.choices(vocabulary, k=length)
        ids = [*before, IMAGE_TOKEN_INDEX, *words]
        labels = [IGNORE_INDEX] * (len(ids) - length // 2) + words[length - length // 2 :]
        positions = len(ids) - 1 + num_visual
        records.append(EncodedRecord(str(number), ids, labels, [str(number // share)], positions, False))
    draw.shuffle(records)
    return records


def rows_of(records: list, shared: bool, max_length: int) -> list[list]:
    """Pack records as training does; a row is a list of EncodedRecords."""
    import torch

    from llava.data.lengths import UNSHARED, ExactLengths
    from llava.data.packing import pack, share_prefixes

    numbers = [(one.length, one.prefix_length, int(one.files[0]) if shared else UNSHARED) for one in records]
    sequences = share_prefixes(ExactLengths(*torch.tensor(numbers).unbind(dim=1)), max_length)
    members = [part.tolist() for part in sequences.order.tensor_split(sequences.ends[:-1])]
    if shared:
        made = [[records[one].as_branch(n) for n, one in enumerate(own, start=1)] for own in members]
    else:
        made = [[records[one] for one in own] for own in members]
    packs = pack(zip(made, sequences.lengths, strict=True), max_length)
    return [list(chain(*row)) for row in packs]


def model_inputs(packs: list[list], device: str, dtype) -> dict:
    """The model's inputs for one batch, with random pixels."""
    import torch

    from llava.data.collator import Collator
    from llava.data.sample import integers
    from llava.train.training_data import WithHostCopy

    def sample(record) -> dict:
        made = {
            "name": record.name,
            "input_ids": integers(record.input_ids),
            "labels": integers(record.labels),
            "images": [torch.randn(3, IMAGE_SIZE, IMAGE_SIZE, dtype=dtype) for _ in record.files],
            "image_sizes": [(IMAGE_SIZE, IMAGE_SIZE)] * len(record.files),
        }
        return made if record.branch_ids is None else made | {"branch_ids": integers(record.branch_ids)}

    batch = WithHostCopy(Collator(pad_token_id=0))([[sample(record) for record in row] for row in packs])
    del batch["record_names"], batch["image_sizes"]
    return {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}


def step_through(model, batches: list[dict]) -> None:
    for batch in batches:
        model(**batch).loss.backward()
        model.zero_grad(set_to_none=True)


def figures(records: list, batches: list[dict], seconds: float, num_visual: int) -> dict:
    """The counts and speeds of one way. Tokens are those of separate records, so all ways have as many."""
    words = sum(int((batch["sequence_ids"] >= 0).sum()) for batch in batches)
    pictures = sum(len(batch["images"]) for batch in batches)
    return {
        "batches": len(batches),
        "positions": words + pictures * (num_visual - 1),
        "pictures": pictures,
        "seconds": seconds,
        "records_per_second": len(records) / seconds,
        "tokens_per_second": sum(record.length for record in records) / seconds,
    }


def as_markdown(rows: list[dict], about: dict, args: argparse.Namespace) -> str:
    packed = {row["records_a_picture"]: row["seconds"] for row in rows if row["way"] == PACKED}
    cells = [
        [
            *(row["records_a_picture"], row["way"], row["batches"], f"{row['positions']:,}", row["pictures"]),
            f"{row['records_per_second']:.2f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{packed[row['records_a_picture']] / row['seconds']:.2f}x",
        ]
        for row in rows
    ]
    size = (
        f"{args.shape}, {about['layers']} layers; {args.records} records, {args.before_tokens} tokens ahead "
        f"of the picture and {args.median} after it in the median record, batches of {args.batch_size} x "
        f"{args.max_length} positions, {'processor' if args.processor_time else 'wall'} time"
    )
    return f"{headline(about)}; {size}.\n\n{table([*COLUMNS, 'against packed'], cells)}"
