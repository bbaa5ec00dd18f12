"""A cache for training steps, which keeps nothing."""

from torch import Tensor
from transformers import Cache


class KeepsNothing(Cache):
    """A cache that returns the keys and values it is given and keeps none.

    Without a cache and a mask, transformers asks the device in each forward pass whether positions restart,
    as those of packed rows do, and waits for the answer. With any cache it does not ask.
    """

    def __init__(self):
        super().__init__(layers=[])

    @property
    def is_sliding(self) -> list[bool]:
        return [False]

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int | None = None) -> tuple[int, int]:
        return query_length, 0
