"""Continues a run to a new number of steps. A finished run needs --extend, an unfinished one does not."""

import logging
from pathlib import Path

from transformers import TrainerCallback

from llava.errors import UserError
from llava.train import saving

logger = logging.getLogger(__name__)


def finished_steps(output_dir: str) -> int | None:
    """The number of steps of the complete run in a folder; None if there is none."""
    return saving.read_state(output_dir)["max_steps"] if saving.is_complete(output_dir) else None


def extends(args) -> bool:
    """Whether the complete run in --output_dir is to be continued.

    Raises:
        UserError: if the flags ask for more than it has, but --extend is not given or there is no checkpoint.
    """
    state = saving.read_state(args.output_dir)
    if args.max_steps > 0:
        is_more, asked = args.max_steps > state["max_steps"], f"--max_steps {args.max_steps}"
    else:
        is_more, asked = (
            args.num_train_epochs > state["epoch"],
            f"--num_train_epochs {args.num_train_epochs:g}",
        )
    if not is_more:
        return False
    done = (
        f"--output_dir {args.output_dir!r} has a complete run of {state['max_steps']} steps "
        f"({state['epoch']:.4g} epochs), and {asked} asks for more"
    )
    if not args.extend:
        raise UserError(f"{done}; add --extend True to continue it, or choose another --output_dir.")
    if not saving.checkpoints(args.output_dir):
        raise UserError(f"{done}, but it has no checkpoint to continue from; choose another --output_dir.")
    return True


class Extension(TrainerCallback):
    """Sets the learning rate by the new schedule if the number of steps of a resumed run has changed.

    The checkpoint's optimizer has the rate of the old schedule, and the next step would still use it.
    """

    def on_train_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        if not state.global_step:
            return
        checkpoint = Path(args.output_dir) / f"{saving.CHECKPOINT_PREFIX}{state.global_step}"
        before = saving.read_state(checkpoint)["max_steps"]
        if before == state.max_steps:
            return
        groups = lr_scheduler.optimizer.param_groups
        old = groups[0]["lr"]
        for group, factor, base in zip(groups, lr_scheduler.lr_lambdas, lr_scheduler.base_lrs, strict=True):
            group["lr"] = base * factor(lr_scheduler.last_epoch)
        logger.info(
            "The run continues from step %d of %d to step %d. From now on, its learning rate follows the "
            "schedule of %d steps: it changes from %g to %g at once, and then follows %s.",
            *(state.global_step, before, state.max_steps, state.max_steps),
            *(old, groups[0]["lr"], args.lr_scheduler_type.value),
        )
