"""Chooses the flags of DeepSpeed and gradient checkpointing that a GPU's memory allows, with reasons."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import HfArgumentParser

from llava.errors import UserError
from llava.model.files import read_json
from llava.train.flags import DataArguments, ModelArguments, flag
from llava.train.memory import (
    GIB,
    NO_ZERO,
    STAGES,
    Batch,
    Recipe,
    Zero,
    choose,
    host_bytes,
    usable_bytes,
)
from llava.train.model_size import ModelSize, RunArguments, size_of

CONFIGS = Path(__file__).parents[2] / "scripts"


@dataclass
class Place:
    """The GPUs that the run is to use."""

    num_gpus: int = flag(1, "Number of GPUs on all nodes together.")
    gpu_memory_mib: int = flag(
        None, "Memory of one GPU in MiB; default: that of the smallest GPU of this machine."
    )

    def __post_init__(self):
        if self.gpu_memory_mib is None:
            import torch

            if not torch.cuda.is_available():
                raise UserError("this machine has no GPU, so the memory of a GPU must be given.")
            properties = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
            self.gpu_memory_mib = min(gpu.total_memory for gpu in properties) // 2**20

    @property
    def gpu_bytes(self) -> int:
        return self.gpu_memory_mib * 2**20


def read_zero(config: str) -> Zero:
    """Read the ZeRO settings of a DeepSpeed configuration file, or of the name `none`."""
    if config == NO_ZERO.name:
        return NO_ZERO
    zero = read_json(Path(config)).get("zero_optimization", {})
    offload = zero.get("offload_optimizer", {}).get("device", "none") != "none"
    return Zero(Path(config).stem, zero.get("stage", 0), offload)


def parse(argv: list[str]) -> tuple[Place, ModelArguments, DataArguments, RunArguments]:
    """Parse the flags on which memory depends from a training command line; others are ignored."""
    parser = HfArgumentParser((Place, ModelArguments, DataArguments, RunArguments), allow_abbrev=False)
    return parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)[:4]


@dataclass(frozen=True)
class Decision:
    """A recipe and the values that it was chosen for."""

    place: Place
    size: ModelSize
    batch: Batch
    recipe: Recipe
    deepspeed: str  # the flag as it was given

    def flags(self) -> list[str]:
        """The chosen flags for train_mem.py."""
        chosen = self.recipe
        flags = ["--gradient_checkpointing", str(chosen.gradient_checkpointing)]
        if chosen.recompute_above:
            flags += ["--recompute_above", str(chosen.recompute_above)]
        if chosen.zero != NO_ZERO:
            own = self.deepspeed != "auto"
            flags += ["--deepspeed", self.deepspeed if own else str(CONFIGS / f"{chosen.zero.name}.json")]
        return flags

    def lines(self) -> list[str]:
        """The lines to log: the budget by parts, and what was chosen."""
        chosen, batch, size = self.recipe, self.batch, self.size
        above, most, gpu_bytes = chosen.recompute_above, chosen.most_positions, self.place.gpu_bytes
        usable = usable_bytes(gpu_bytes) / GIB
        parts = [f"{name} {value / GIB:.1f}" for name, value in vars(chosen.budget).items() if value]
        lines = [
            f"{self.place.num_gpus} x {gpu_bytes / GIB:.0f} GiB, of which {usable:.1f} each can be used; "
            f"{batch.sequences} sequences of at most {batch.length} positions, {size.tokens} visual tokens "
            "per view",
            f"{chosen.zero.name}: {' + '.join(parts)} = {chosen.budget.total / GIB:.1f} GiB per GPU",
        ]
        if chosen.zero.offload:
            host = host_bytes(size, chosen.zero) / GIB
            lines.append(f"all nodes together need {host:.0f} GiB of main memory")
        if above:
            lines.append(
                f"batches of up to {above:,} positions ({above // batch.sequences} per sequence) keep their "
                "activations; larger ones recompute them"
            )
        else:
            again = "recomputed" if chosen.gradient_checkpointing else "kept"
            lines.append(f"the activations of every batch are {again}")
        if most < batch.positions:
            lines.append(
                f"batches of more than {most:,} positions ({most // batch.sequences} per sequence) do not "
                "fit: for such long records, lower BATCH_SIZE or MODEL_MAX_LENGTH, or use more GPUs"
            )
        return lines


def decide(argv: list[str]) -> Decision:
    """Decide for a training command line. Values that it gives are kept, and `auto` is replaced.

    Raises:
        UserError: if the model's configuration cannot be read, or the memory is unknown.
    """
    place, model_args, data_args, run_args = parse(argv)
    stages = STAGES[:1] if run_args.bits < 16 else STAGES  # quantised weights cannot be cut into pieces
    if run_args.deepspeed != "auto":
        stages = (read_zero(run_args.deepspeed),)
    wanted = {"true": True, "false": False}.get(run_args.gradient_checkpointing.lower())
    size = size_of(model_args, data_args, run_args)
    accumulates = run_args.gradient_accumulation_steps > 1
    batch = Batch(run_args.per_device_train_batch_size, run_args.model_max_length, accumulates)
    recipe = choose(size, place.gpu_bytes, place.num_gpus, batch, stages, wanted)
    return Decision(place, size, batch, recipe, run_args.deepspeed)
