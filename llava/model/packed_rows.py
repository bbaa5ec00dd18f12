"""Positions and attention of packed rows, whose sequences may be several records with a common prefix."""

# B rows, T positions. A sequence is one record, or several that begin alike: their common prefix once, and
# after it a branch for each record, with the record's other tokens. A record attends to the prefix and to its
# branch.

from typing import NamedTuple

import torch
from torch import Tensor

from llava.errors import UserError

TAKE_A_MASK = ("sdpa", "eager")  # attention implementations for which a mask is given as a tensor


class PackedRows(NamedTuple):
    """Where each position of packed rows is in its record; columns are those of the row.

    Attributes:
        position_ids: long[B, T], the token's position in its own record.
        previous: long[B, T], the column of the record's token before this one. For the first token of a
            sequence it is the column before, which belongs to no token of the record.
        visible_until: long[B, T], the first column that no longer attends to this one: a sequence's end for
            its prefix, and a branch's end for the branch.
    """

    position_ids: Tensor
    previous: Tensor
    visible_until: Tensor


def packed_rows(sequence_ids: Tensor, branch_ids: Tensor | None = None) -> PackedRows:
    """Find each position's place in its record.

    Args:
        sequence_ids: long[B, T], the number of a token's sequence in its row; padding counts as one, -1.
        branch_ids: long[B, T], 0 in the prefix of a sequence, then 1, 2, ... in its branches; None: all 0.
    """
    branch_ids = torch.zeros_like(sequence_ids) if branch_ids is None else branch_ids
    columns = torch.arange(sequence_ids.shape[1]).expand_as(sequence_ids)
    starts_sequence = _changes(sequence_ids)
    starts_run = starts_sequence | _changes(branch_ids)
    is_prefix = branch_ids == 0
    prefix_end = torch.where(is_prefix, columns + 1, 0).cummax(dim=1).values
    prefix_length = torch.where(is_prefix, 0, prefix_end - _starts(starts_sequence, columns))
    return PackedRows(
        position_ids=prefix_length + columns - _starts(starts_run, columns),
        previous=torch.where(starts_run & ~is_prefix, prefix_end, columns) - 1,
        visible_until=torch.where(is_prefix, _ends(starts_sequence, columns), _ends(starts_run, columns)),
    )


def _changes(values: Tensor) -> Tensor:
    """Whether each of long[B, T] differs from the one before it in the row; the first one always does."""
    return torch.diff(values, prepend=values[:, :1] - 1) != 0


def _starts(is_start: Tensor, columns: Tensor) -> Tensor:
    """The column in which the run of each position starts, long[B, T]."""
    return torch.where(is_start, columns, 0).cummax(dim=1).values


def _ends(is_start: Tensor, columns: Tensor) -> Tensor:
    """The column after the last one of each position's run, long[B, T]."""
    is_last = torch.nn.functional.pad(is_start[:, 1:], (0, 1), value=True)
    ends = torch.where(is_last, columns + 1, columns.shape[1])
    return ends.flip(1).cummin(dim=1).values.flip(1)


def check_takes_a_mask(implementation: str) -> None:
    """Raises UserError unless the attention implementation takes the mask of records that share a prefix."""
    if implementation not in TAKE_A_MASK:
        raise UserError(
            f"--share_images True needs a mask, which --attn_implementation {implementation} does not take; "
            f"choose {' or '.join(TAKE_A_MASK)}, or leave --share_images out."
        )


def attention_mask(
    visible_until: Tensor, position_ids: Tensor, config, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """The mask of packed rows with branches, as transformers' decoders take one that is already prepared.

    A token sees the tokens before it in its own record. In layers with a sliding window it sees only those
    less than the window before it.

    Args:
        visible_until, position_ids: from packed_rows, on any device, of which no value is read.
        config: the language model's; its attention implementation, sliding_window and layer_types are read.
        dtype: of the hidden states.
    Returns:
        For sdpa bool[B, 1, T, T], True where a query (third dimension) sees a key; for eager
        float[B, 1, T, T], which is added to the scores. If only some layers have a window, a dict with the
        mask for each kind of layer.
    Raises:
        UserError: like check_takes_a_mask.
    """
    implementation = config._attn_implementation
    check_takes_a_mask(implementation)
    columns = torch.arange(visible_until.shape[1], device=visible_until.device)
    queries = columns[:, None]
    sees = (queries >= columns) & (queries < visible_until[:, None, :])
    window = getattr(config, "sliding_window", None)
    full = _prepared(sees, implementation, dtype)
    if window is None or window >= len(columns):
        return full
    distances = position_ids[:, :, None] - position_ids[:, None, :]
    windowed = _prepared(sees & (distances < window), implementation, dtype)
    if getattr(config, "layer_types", None) is None:
        return windowed
    return {"full_attention": full, "sliding_attention": windowed}


def _prepared(sees: Tensor, implementation: str, dtype: torch.dtype) -> Tensor:
    sees = sees[:, None]
    if implementation == "sdpa":
        return sees
    return torch.zeros_like(sees, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)
