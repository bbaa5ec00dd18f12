"""The memory budget: computed by hand for a 7B model, and rules for any model, GPU and batch."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.train.memory import (
    GIB,
    NO_ZERO,
    RESERVED,
    STAGES,
    Batch,
    Zero,
    budget,
    choose,
    host_bytes,
    usable_bytes,
)
from llava.train.model_size import ModelSize

ZERO_2, ZERO_3, OFFLOAD = STAGES
SEVEN_B = ModelSize(
    learning=6_800_000_000,
    weight=2,
    frozen=600_000_000,
    position=6_000_000,
    layer_position=190_000,
    hidden=8192,
    view=50_000_000,
    head_gradient=262_000_000,
    layers=32,
    vocabulary=32000,
    tokens=144,
    views=1,
)
BATCH = Batch(sequences=16, length=2048)


def test_seven_billion_parameters_on_eight_gpus_by_hand():
    short = Batch(sequences=16, length=400, accumulates=True)
    held = budget(SEVEN_B, ZERO_2, 8, short, recompute=False)
    assert held.weights == 2 * 6.8e9 + 0.6e9
    assert held.optimizer == 12 * 6.8e9 / 8
    assert held.gradients == 2 * 6.8e9 / 8
    assert held.weights + held.optimizer + held.gradients == pytest.approx(26e9, rel=0.01)
    assert held.vision == 16 * 50e6
    assert held.loss == 2**26 * 12 + 262e6  # the 6,400 x 32,000 logits are computed in parts
    assert held.activations == 6400 * 6.19e6
    assert held.total == pytest.approx(sum(vars(held).values()))
    assert budget(SEVEN_B, ZERO_2, 8, short, recompute=True).activations == 6400 * (32 * 8192 + 190e3)


def test_gradients_take_the_place_of_activations_in_a_step_of_one_batch():
    many, few = (budget(SEVEN_B, ZERO_2, 1, BATCH, True, positions) for positions in (32768, 16))
    assert many.gradients == 0
    assert few.gradients == pytest.approx(2 * 6.8e9 - few.activations)


@pytest.mark.parametrize(
    ("zero", "gpus", "weights", "optimizer"),
    [
        (NO_ZERO, 1, 6 * 6.8e9 + 0.6e9, 8 * 6.8e9),
        (Zero("own", 1), 8, 14.2e9, 12 * 6.8e9 / 8),
        (ZERO_3, 8, 14.2e9 / 8 + 2e9, 12 * 6.8e9 / 8),
        (OFFLOAD, 8, 2e9, 0),
    ],
)
def test_each_stage_divides_what_it_says(zero, gpus, weights, optimizer):
    held = budget(SEVEN_B, zero, gpus, BATCH, recompute=True)
    assert (held.weights, held.optimizer) == pytest.approx((weights, optimizer))


def test_offload_moves_weights_gradients_and_optimiser_into_the_hosts_memory():
    assert host_bytes(SEVEN_B, OFFLOAD) == 16 * 6.8e9 + 0.6e9
    assert host_bytes(SEVEN_B, ZERO_3) == 0


def test_compression_buys_a_step_without_recomputation():
    """With 144 visual tokens and about 256 of text, 8 GPUs of 80 GiB keep a batch of 16's activations."""
    gpu = 81559 * 2**20
    compressed = choose(SEVEN_B, gpu, 8, BATCH)
    assert compressed.zero == ZERO_2
    assert 16 * 400 < compressed.recompute_above < 16 * (576 + 40)
    assert compressed.gradient_checkpointing
    assert compressed.most_positions == BATCH.positions
    whole = choose(replace(SEVEN_B, tokens=576), gpu, 8, BATCH)
    assert (whole.zero, whole.gradient_checkpointing, whole.recompute_above) == (ZERO_2, True, 0)


@pytest.mark.parametrize(
    ("gib", "gpus", "stage"),
    [(80, 8, ZERO_2), (40, 8, ZERO_3), (80, 1, OFFLOAD), (24, 8, ZERO_3), (16, 8, OFFLOAD)],
)
def test_the_fastest_stage_that_fits_is_taken(gib, gpus, stage):
    assert choose(SEVEN_B, gib * GIB, gpus, BATCH).zero == stage


def test_what_the_user_gives_is_kept():
    kept = choose(SEVEN_B, 40 * GIB, 8, BATCH, stages=(ZERO_2,), gradient_checkpointing=False)
    assert (kept.zero, kept.gradient_checkpointing, kept.recompute_above) == (ZERO_2, False, 0)
    assert kept.most_positions < BATCH.positions


def test_a_model_that_never_recomputes_where_there_is_room():
    roomy = choose(replace(SEVEN_B, learning=10_000_000), 80 * GIB, 1, Batch(1, 2048))
    assert (roomy.gradient_checkpointing, roomy.recompute_above) == (False, 0)


def test_a_few_long_records_do_not_cause_offload():
    """Captions have about a hundred positions, but --model_max_length is 2048."""
    stage_1 = replace(SEVEN_B, learning=20_000_000, frozen=14_000_000_000, head_gradient=0)
    chosen = choose(stage_1, 24 * GIB, 1, Batch(16, 2048))
    assert chosen.zero == ZERO_2
    assert 16 * (144 + 512) <= chosen.most_positions < 16 * 2048


def model_size(layers: int, layer_position: int, hidden: int, **others) -> ModelSize:
    """A model size in which a layer keeps its input and more."""
    position = layers * (hidden + layer_position)
    return ModelSize(
        layers=layers, layer_position=hidden + layer_position, hidden=hidden, position=position, **others
    )


sizes = st.builds(
    model_size,
    learning=st.integers(10**6, 10**11),
    weight=st.sampled_from([2, 4]),
    frozen=st.integers(0, 10**11),
    layer_position=st.integers(10**3, 10**5),
    hidden=st.integers(10**2, 10**5),
    view=st.integers(0, 10**8),
    head_gradient=st.integers(0, 10**9),
    layers=st.integers(1, 100),
    vocabulary=st.integers(1000, 300_000),
    tokens=st.integers(1, 2880),
    views=st.integers(1, 26),
)
batches = st.builds(Batch, st.integers(1, 64), st.integers(256, 8192), st.booleans())


@given(sizes, batches, st.integers(1, 64), st.sampled_from(STAGES), st.booleans(), st.integers(0, 10**6))
def test_more_gpus_and_fewer_positions_never_need_more(size, batch, gpus, zero, recompute, positions):
    here = budget(size, zero, gpus, batch, recompute, positions).total
    assert budget(size, zero, gpus + 1, batch, recompute, positions).total <= here
    assert budget(size, zero, gpus, batch, recompute, positions // 2).total <= here
    assert here >= RESERVED


@given(sizes, batches, st.integers(1, 64), st.integers(8, 192))
def test_a_recipe_keeps_its_promises(size, batch, gpus, gib):
    chosen = choose(size, gib * GIB, gpus, batch)
    room = usable_bytes(gib * GIB)

    def fits(positions: int, recompute: bool) -> bool:
        return budget(size, chosen.zero, gpus, batch, recompute, positions).total <= room

    assert 0 <= chosen.most_positions <= batch.positions
    assert not chosen.most_positions or fits(chosen.most_positions, chosen.gradient_checkpointing)
    if chosen.most_positions < batch.positions:
        assert not fits(chosen.most_positions + 1, chosen.gradient_checkpointing)
    if chosen.recompute_above:
        assert chosen.zero.stage != 3
        assert fits(chosen.recompute_above, recompute=False)
        assert batch.sequences * size.tokens <= chosen.recompute_above < batch.positions
    if not chosen.gradient_checkpointing:
        assert fits(batch.positions, recompute=False)
