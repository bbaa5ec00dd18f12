"""In packed rows each token has the position, the token before and the view that its own record gives it."""

from argparse import Namespace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import assert_names

from llava.errors import UserError
from llava.model.packed_rows import attention_mask, packed_rows

SDPA = Namespace(_attn_implementation="sdpa")


def ids_of(row: list[list[int]]) -> tuple[list[int], list[int]]:
    """Sequence ids and branch ids of sequences, each the lengths of its prefix and of its branches."""
    sequences, branches = [], []
    for number, lengths in enumerate(row):
        sequences += [number] * sum(lengths)
        branches += [branch for branch, length in enumerate(lengths) for _ in range(length)]
    return sequences, branches


def records_of(row: list[list[int]]) -> list[list[int]]:
    """The columns of each record: those of its prefix and of its branch."""
    records, start = [], 0
    for prefix, *branches in row:
        beginning = list(range(start, start + prefix))
        start += prefix
        for length in branches or [0]:
            records.append([*beginning, *range(start, start + length)])
            start += length
    return records


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    row=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), min_size=1, max_size=4),
    padding=st.integers(0, 3),
    is_left=st.booleans(),
    window=st.integers(1, 6),
)
def test_each_token_is_placed_as_in_its_own_record(row, padding, is_left, window):
    sequences, branches = ids_of(row)
    shift = padding if is_left else 0
    records = [[column + shift for column in record] for record in records_of(row)]
    pads = [-1] * padding, [0] * padding
    sequences = pads[0] + sequences if is_left else sequences + pads[0]
    branches = pads[1] + branches if is_left else branches + pads[1]
    placed = packed_rows(torch.tensor([sequences]), torch.tensor([branches]))
    seen = {column: set() for column in range(len(sequences))}
    near = {column: set() for column in range(len(sequences))}
    for record in records:
        for position, column in enumerate(record):
            assert placed.position_ids[0, column] == position
            assert not position or placed.previous[0, column] == record[position - 1]
            seen[column] |= set(record[: position + 1])
            near[column] |= set(record[max(0, position + 1 - window) : position + 1])
    masks = [
        attention_mask(placed.visible_until, placed.position_ids, config, torch.float32)
        for config in (SDPA, Namespace(**vars(SDPA), sliding_window=window))
    ]
    for mask, expected in zip(masks, (seen, near), strict=True):
        assert mask.shape == (1, 1, len(sequences), len(sequences))
        for column in range(shift, shift + sum(map(sum, row))):
            assert set(mask[0, 0, column].nonzero().flatten().tolist()) == expected[column]
        assert mask.any(dim=-1).all(), "a query that sees nothing would give no number"


def test_eager_attention_adds_the_mask_to_its_scores():
    placed = packed_rows(torch.tensor([[0, 0, 0]]), torch.tensor([[0, 1, 2]]))
    mask = attention_mask(
        placed.visible_until, placed.position_ids, Namespace(_attn_implementation="eager"), torch.bfloat16
    )
    assert mask.dtype == torch.bfloat16
    assert (mask[0, 0] == 0).tolist() == [[True, False, False], [True, True, False], [True, False, True]]
    assert (mask <= 0).all()


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3"])
def test_attention_that_takes_no_mask_is_refused(tmp_path, attention):
    model = tiny.build(tmp_path)
    model.config._attn_implementation = attention
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(UserError) as error:
        model(ids, sequence_ids=torch.zeros_like(ids), branch_ids=torch.tensor([[0, 1, 2]]))
    assert_names(str(error.value), "--share_images", f"--attn_implementation {attention}", "sdpa")


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_branch_reads_neither_the_text_nor_the_order_of_the_others(tmp_path, family):
    model = tiny.build(tmp_path, family)
    prefix, first, second, other = [5, 6, 7], [8, 9, 10, 11], [12, 13, 14], [20, 21, 22, 23, 24]

    def logits(*branches: list[int]) -> list[torch.Tensor]:
        """Those of each branch."""
        ids = torch.tensor([[*prefix, *(token for branch in branches for token in branch)]])
        lengths = torch.tensor([len(prefix), *map(len, branches)])
        branch_ids = torch.arange(len(lengths)).repeat_interleave(lengths)[None]
        output = model(ids, sequence_ids=torch.zeros_like(ids), branch_ids=branch_ids).logits
        return list(output[0].split(lengths.tolist()))[1:]

    with torch.no_grad():
        of_first, of_second = logits(first, second)
        swapped = logits(second, first)
        changed = logits(other, second)
        alone = model(torch.tensor([[*prefix, *second]])).logits[0, len(prefix) :]
    for same in (swapped[0], changed[1], alone):
        torch.testing.assert_close(same, of_second, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(swapped[1], of_first, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(changed[0][:3], of_first[:3], atol=1e-3)
