"""Estimates a training run's GPU memory by parts, and chooses the ZeRO stage and recomputation that fit.

Bytes for each parameter are those of Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training
Trillion Parameter Models", section 3, with AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llava.model.loss import MAX_LOGITS
from llava.train.model_size import ModelSize

GIB = 2**30
RESERVED = 2 * GIB  # the CUDA context, workspaces of cuBLAS and NCCL, buckets of gradients
USABLE = 0.95  # share of a GPU's memory: the allocator cannot use every gap
MAX_GATHERED = 2 * 10**9  # bytes that ZeRO-3 holds whole: stage3_max_live_parameters (1e9) in 16 bits
USUAL_TEXT = 512  # positions of text that few records exceed
LOGIT_BYTES = 12  # of a logit and its gradient, each in 16 bits and in float32


@dataclass(frozen=True)
class Zero:
    """How weights, gradients and the optimiser's state are placed on the GPUs.

    Attributes:
        name: the name of the DeepSpeed configuration file without .json, or none.
        stage: the ZeRO stage; 0 is DistributedDataParallel with autocast, without DeepSpeed.
        offload: whether weights and the optimiser's state are in the host's memory.
    """

    name: str
    stage: int
    offload: bool = False


NO_ZERO = Zero("none", 0)
STAGES = (Zero("zero2", 2), Zero("zero3", 3), Zero("zero3_offload", 3, offload=True))  # the fastest first


@dataclass(frozen=True)
class Batch:
    """What a device processes at once.

    Attributes:
        sequences: how many, each with the visual tokens of one image.
        length: positions of the longest sequence.
        accumulates: whether an optimiser step has several batches.
    """

    sequences: int
    length: int
    accumulates: bool = False

    @property
    def positions(self) -> int:
        return self.sequences * self.length


@dataclass(frozen=True)
class Budget:
    """Bytes that a GPU holds when the backward pass begins."""

    weights: float
    optimizer: float
    gradients: float
    vision: float
    loss: float
    activations: float
    reserved: float = RESERVED

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def budget(
    size: ModelSize, zero: Zero, num_gpus: int, batch: Batch, recompute: bool, positions: int | None = None
) -> Budget:
    """The memory of a training step.

    Args:
        recompute: whether the decoder layers' activations are computed again in the backward pass.
        positions: the batch's positions, padding included; by default as many as it can have.
    """
    positions = batch.positions if positions is None else positions
    weights, optimizer, gradients = _held(size, zero, num_gpus)
    kept = size.layers * size.hidden if recompute else size.position
    activations = positions * (kept + size.layer_position)  # plus one layer's backward pass
    if not batch.accumulates:
        gradients = max(0, gradients - activations)  # made while activations are freed
    views = min(batch.sequences * size.views, positions // size.tokens + 1)
    return Budget(
        weights=weights,
        optimizer=optimizer,
        gradients=gradients,
        vision=views * size.view,
        loss=min(MAX_LOGITS, positions * size.vocabulary) * LOGIT_BYTES + size.head_gradient,
        activations=activations,
    )


def _held(size: ModelSize, zero: Zero, num_gpus: int) -> tuple[float, float, float]:
    """Bytes of weights, optimiser state and gradients on one GPU."""
    if zero.stage == 0:
        autocast, buckets = 2, 4 * (num_gpus > 1)  # bytes a parameter besides those in float32
        return (4 + autocast) * size.learning + size.frozen, 8 * size.learning, (4 + buckets) * size.learning
    all_weights = size.weight * size.learning + size.frozen
    if zero.offload:
        return min(all_weights, MAX_GATHERED), 0, 0
    # AdamW's two averages and a float32 copy of the weights
    optimizer, gradients = 12 * size.learning / num_gpus, size.weight * size.learning / num_gpus
    if zero.stage == 3:
        return all_weights / num_gpus + min(all_weights, MAX_GATHERED), optimizer, gradients
    if zero.stage == 2:
        return all_weights, optimizer, gradients
    return all_weights, optimizer, size.weight * size.learning  # ZeRO-1 divides only the optimiser's state


def host_bytes(size: ModelSize, zero: Zero) -> float:
    """Bytes that all ranks together hold in the hosts' memory."""
    return (2 * size.weight + 12) * size.learning + size.frozen if zero.offload else 0


@dataclass(frozen=True)
class Recipe:
    """How a run uses its GPUs.

    Attributes:
        gradient_checkpointing: whether activations are computed again in the backward pass.
        recompute_above: then only batches of more positions than this do so; 0: all batches do.
        most_positions: the most positions of a batch that fits.
        budget: the budget of that batch; with recompute_above, of the largest that keeps its activations.
    """

    zero: Zero
    gradient_checkpointing: bool
    recompute_above: int
    most_positions: int
    budget: Budget


def usable_bytes(gpu_bytes: float) -> float:
    return USABLE * gpu_bytes


def choose(
    size: ModelSize,
    gpu_bytes: float,
    num_gpus: int,
    batch: Batch,
    stages: Sequence[Zero] = STAGES,
    gradient_checkpointing: bool | None = None,
) -> Recipe:
    """Choose the fastest stage in which the largest batch fits, with as little recomputation as possible.

    Offload is many times slower, and chosen only if without it not even a batch of usual length fits. Under
    ZeRO-3, either all batches recompute or none does: each time a layer is computed, its weights are gathered
    from all ranks, so all ranks must compute it equally often.

    Args:
        gpu_bytes: the memory of one GPU.
        stages: the stages to choose from, the fastest first.
        gradient_checkpointing: the user's choice; None decides by the memory.
    """
    room = usable_bytes(gpu_bytes)

    def needs(zero: Zero, recompute: bool, positions: int | None = None) -> Budget:
        return budget(size, zero, num_gpus, batch, recompute, positions)

    def most(zero: Zero, recompute: bool) -> int:
        return _most(lambda positions: needs(zero, recompute, positions).total <= room, batch.positions)

    recompute = gradient_checkpointing is not False
    usual = batch.sequences * min(batch.length, size.tokens + USUAL_TEXT)
    fitting = [(zero, most(zero, recompute)) for zero in stages if not zero.offload]
    whole = [pair for pair in fitting if pair[1] == batch.positions]
    enough = [pair for pair in fitting if pair[1] >= usual]
    zero, fits = (whole or enough or [(stages[-1], most(stages[-1], recompute))])[0]
    above, kept = 0, most(zero, False)
    if gradient_checkpointing is None:
        recompute = kept < batch.positions
        if (
            recompute and zero.stage != 3 and kept >= batch.sequences * size.tokens
        ):  # otherwise only batches without images would gain
            above = kept
    shown = needs(zero, False, above) if above else needs(zero, recompute, fits)
    return Recipe(zero, recompute, above, fits, shown)


def _most(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number from 0 to limit that fits. If one does not fit, larger ones must not fit either."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def largest_batch(
    size: ModelSize,
    gpu_bytes: float,
    num_gpus: int,
    length: int,
    zero: Zero,
    recompute: bool,
    accumulates: bool = False,
    limit: int = 1024,
) -> int:
    """The largest number of sequences of one length, at most `limit`, that fit; 0 if not even one does."""

    def fits(sequences: int) -> bool:
        batch = Batch(sequences, length, accumulates)
        return budget(size, zero, num_gpus, batch, recompute).total <= usable_bytes(gpu_bytes)

    return _most(fits, limit)
