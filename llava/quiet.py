"""Suppresses single messages of other libraries that do not help users of this one.

All other messages are shown. Warnings about outdated calls in our own code must not be added here.
"""

import logging
import re
import warnings

# Maps a logger to a pattern at the beginning of its message
MESSAGES = {
    # Without a GPU. It also comes without --deepspeed, because accelerate imports the package.
    "DeepSpeed": r"Setting accelerator to CPU\.",
    # Trainer: the tokenizer pads with another token than config.json names. The tokenizer's is the right one.
    "transformers.trainer_utils": r"The tokenizer has new PAD/BOS/EOS tokens",
    # A streamed run that was killed after its last checkpoint, and now has no steps left to train.
    "transformers.trainer": r"There seems not to be a single sample in your epoch_iterator",
    # A folder's sampling settings have no effect without do_sample. Our commands have flags for them.
    "transformers.generation.configuration_utils": r"The following generation flags are not valid",
    # In a training step the cache keeps nothing, and recomputed layers do not need it.
    "transformers.modeling_layers": r"Caching is incompatible with gradient checkpointing",
    # Trainer accumulates gradients and tells accelerate 1; DeepSpeed gets --gradient_accumulation_steps.
    "accelerate.accelerator": r"(\[RANK \d+\] )?Gradient accumulation steps mismatch",
    # A kernel from the hub that speeds up 4-bit generation on some CPUs. Results do not depend on it.
    "bitsandbytes.backends.cpu.ops": r"Failed to load CPU gemm_4bit_forward from kernels-community",
}
# Category and a pattern at the beginning of its message
WARNINGS = (
    # DeepSpeed calls collectives by names that newer versions of torch are to drop.
    (FutureWarning, r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated"),
    # DistributedDataParallel, for kernels with one channel: its stride does not change the memory layout.
    (UserWarning, r"(?s)Grad strides do not match bucket view strides\..*\ngrad\.sizes\(\) = \[\d+, 1, "),
)


def _is_shown(record: logging.LogRecord) -> bool:
    return re.match(MESSAGES[record.name], record.getMessage()) is None


def quiet_libraries() -> None:
    """Suppress these messages in this process from now on."""
    for name in MESSAGES:
        logging.getLogger(name).addFilter(_is_shown)
    for category, pattern in WARNINGS:
        warnings.filterwarnings("ignore", message=pattern, category=category)
