"""Leaves frozen weights out of DeepSpeed's checkpoints, because each start reads them anew."""

from functools import partial

from torch import nn
from transformers import Trainer, TrainerCallback


class WithoutFrozen(TrainerCallback):
    """Has DeepSpeed leave frozen weights out when it saves, and lets them be missing when it loads."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        trainer.model.register_load_state_dict_post_hook(allow_frozen)

    def on_train_begin(self, *args, **kwargs):
        engine = self.trainer.model_wrapped
        engine.save_checkpoint = partial(engine.save_checkpoint, exclude_frozen_parameters=True)


def allow_frozen(model: nn.Module, keys) -> None:
    """A hook of load_state_dict that has a strict load ignore frozen weights.

    Args:
        keys: missing_keys and unexpected_keys; the latter may have the parts of a quantised weight.
    """
    frozen = tuple(name for name, parameter in model.named_parameters() if not parameter.requires_grad)
    for names in (keys.missing_keys, keys.unexpected_keys):
        names[:] = [name for name in names if not name.startswith(frozen)]
