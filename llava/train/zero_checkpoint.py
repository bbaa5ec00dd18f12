"""DeepSpeed's checkpoints without the weights that are frozen, which are read anew at each start."""

from functools import partial

from torch import nn
from transformers import Trainer, TrainerCallback


class WithoutFrozen(TrainerCallback):
    """Trainer has DeepSpeed save the whole model and load all of it; the two are told what to leave out."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        trainer.model.register_load_state_dict_post_hook(allow_frozen)

    def on_train_begin(self, *args, **kwargs):
        engine = self.trainer.model_wrapped
        engine.save_checkpoint = partial(engine.save_checkpoint, exclude_frozen_parameters=True)


def allow_frozen(model: nn.Module, keys) -> None:
    """A hook of load_state_dict, by which a strict load neither misses a frozen weight nor minds its parts.

    Args:
        keys: missing_keys and unexpected_keys; of the latter those of a quantised weight are allowed.
    """
    frozen = tuple(name for name, parameter in model.named_parameters() if not parameter.requires_grad)
    for names in (keys.missing_keys, keys.unexpected_keys):
        names[:] = [name for name in names if not name.startswith(frozen)]
