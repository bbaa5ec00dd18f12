"""Puts results in the order that region attention reads: the s*s patches of a region are adjacent.

Copying a whole map only to reorder it takes as much memory traffic as a pointwise operation on it. So
pointwise operations write their results in that order where neither autograd nor a compiler is active.
"""

# Legend: multimodal_projector/base.py

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F


def by_region(grid: Tensor, scale_factor: int) -> Tensor:
    """float[B, G, G, E] to float[B, g, g, s, s, E]; a view."""
    side = grid.shape[1] // scale_factor
    return grid.unflatten(2, (side, scale_factor)).unflatten(1, (side, scale_factor)).transpose(2, 3)


def region_rows(cells: Tensor) -> Tensor:
    """float[B, g, g, s, s, E] to float[B*M, s*s, E]: a view if it is already in this order, else a copy."""
    batch, side, _, scale_factor, _, width = cells.shape
    return cells.reshape(batch * side**2, scale_factor**2, width)


def regions(grid_features: Tensor, scale_factor: int) -> Tensor:
    """float[B, N, E], row-major grid, to float[B*M, s*s, E]: the patches of each region."""
    side = round(grid_features.shape[1] ** 0.5)
    return region_rows(by_region(grid_features.unflatten(1, (side, side)), scale_factor))


def writes_in_place(like: Tensor) -> bool:
    """Whether results may be written into memory that is allocated beforehand.

    Autograd and compilers need a new tensor for each result, and autocast chooses its dtype.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or (torch.amp.is_autocast_available(like.device.type) and torch.is_autocast_enabled(like.device.type))
    )


def room_for(like: Tensor, *shape: int) -> Tensor | None:
    """Allocate an `out` argument for results of that shape; None where they cannot be written in place."""
    return like.new_empty(shape) if writes_in_place(like) else None


def gelu(maps: Tensor, out: Tensor | None = None) -> Tensor:
    """GELU, written to `out` if given, whatever its strides."""
    if out is None:
        return F.gelu(maps)
    if maps.is_contiguous() and not out.is_contiguous():
        # on the CPU torch (2.11, 2.13) would write it as if out were contiguous
        return out.copy_(F.gelu(maps))
    return torch.ops.aten.gelu.out(maps, out=out)


def gelu_by_region(maps: Iterable[Tensor], num_maps: int, scale_factor: int) -> Tensor:
    """GELU of `num_maps` maps float[B, E, G, G], concatenated: float[B, g, g, s, s, num_maps*E].

    Where results are written in place, lazily computed maps need not be in memory at the same time.
    """
    cells = (by_region(part.permute(0, 2, 3, 1), scale_factor) for part in maps)
    first = next(cells)
    width = first.shape[-1]
    room = room_for(first, *first.shape[:-1], num_maps * width)
    if room is None:
        return gelu(first if num_maps == 1 else torch.cat([first, *cells], dim=-1))
    targets = iter(room.split(width, dim=-1))
    gelu(first, out=next(targets))
    del first
    for target in targets:
        gelu(next(cells), out=target)
    return room
