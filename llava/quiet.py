"""Messages of other libraries that say nothing to a user of this one, left out one by one.

All other messages are shown. A warning that an outdated call of ours brings about is no matter for this file.
"""

import logging
import re
import warnings

# Logger to a pattern that its message begins with
MESSAGES = {
    # Where there is no GPU. It comes without --deepspeed, too, for accelerate imports the package.
    "DeepSpeed": r"Setting accelerator to CPU\.",
    # Trainer: the tokenizer pads with another token than config.json names. The tokenizer's is the right one.
    "transformers.trainer_utils": r"The tokenizer has new PAD/BOS/EOS tokens",
    # Of a stream, where a run that was killed after its last checkpoint goes on to its result without a step.
    "transformers.trainer": r"There seems not to be a single sample in your epoch_iterator",
    # A folder's settings of sampling without do_sample have no effect. Our commands have flags for them.
    "transformers.generation.configuration_utils": r"The following generation flags are not valid",
    # A training step's cache keeps nothing, and layers that are recomputed do without it.
    "transformers.modeling_layers": r"Caching is incompatible with gradient checkpointing",
    # Trainer accumulates gradients and tells accelerate 1; DeepSpeed gets --gradient_accumulation_steps.
    "accelerate.accelerator": r"(\[RANK \d+\] )?Gradient accumulation steps mismatch",
    # A kernel of the hub's that speeds up 4-bit generation on some CPUs. Results do not depend on it.
    "bitsandbytes.backends.cpu.ops": r"Failed to load CPU gemm_4bit_forward from kernels-community",
}
# Category and a pattern that its message begins with
WARNINGS = (
    # DeepSpeed calls collectives by names that newer versions of torch are to drop.
    (FutureWarning, r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated"),
    # DistributedDataParallel, of kernels with one channel: strides that differ along it mean the same memory.
    (UserWarning, r"(?s)Grad strides do not match bucket view strides\..*\ngrad\.sizes\(\) = \[\d+, 1, "),
)


def _is_shown(record: logging.LogRecord) -> bool:
    return re.match(MESSAGES[record.name], record.getMessage()) is None


def quiet_libraries() -> None:
    """Leave these messages out of what this process prints from here on."""
    for name in MESSAGES:
        logging.getLogger(name).addFilter(_is_shown)
    for category, pattern in WARNINGS:
        warnings.filterwarnings("ignore", message=pattern, category=category)
