"""How fast a run goes and what memory it takes, over all ranks, without waiting for the device in between."""

import resource
import sys
import time
from dataclasses import dataclass

import torch
from transformers import Trainer, TrainerCallback

from llava.train.host_copy import HostCopy


class Throughput(TrainerCallback):
    """From one log to the next: samples, tokens, and seconds without those of saves and evaluations.

    Text tokens stand in the prompt, without padding and <image>; visual tokens are the positions that images
    take in the language model's sequence.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self._reset()

    def _reset(self) -> None:
        self.num_steps = 0
        self._seconds = 0.0
        self._counts = torch.zeros(3, dtype=torch.long, device=self.trainer.args.device)

    def count(self, inputs: dict, num_samples: int) -> None:
        """A batch as the model gets it: input_ids long[B, T] and what goes with them."""
        is_text = inputs["input_ids"] >= 0  # placeholders are negative
        if "sequence_ids" in inputs:  # packed: padding is of no sequence
            is_text &= inputs["sequence_ids"] >= 0
        elif "attention_mask" in inputs:
            is_text &= inputs["attention_mask"].bool()
        model, scale_factor = self.trainer.model, inputs.get("scale_factor")
        visual = sum(model.visual_positions_of(size, scale_factor) for size in inputs.get("image_sizes", []))
        self._counts[0] += num_samples
        self._counts[1] += visual
        self._counts[2] += is_text.sum()

    def take(self) -> "Rates":
        """Over all ranks since the last call, and the highest memory of any; all must call."""
        memory = torch.full((1,), peak_memory(), dtype=torch.double, device=self._counts.device)
        local = torch.cat([self._counts.double(), memory])
        ranks = self.trainer.accelerator.gather(local).view(-1, local.numel())
        total = torch.cat([ranks[:, :3].sum(dim=0), ranks[:, 3:].amax(dim=0)])
        rates = Rates(self.num_steps, self._seconds, HostCopy(total))
        self._reset()
        return rates

    def _start_clock(self, *args, **kwargs) -> None:
        self._started = time.perf_counter()

    on_train_begin = on_save = on_evaluate = _start_clock

    def on_step_end(self, *args, **kwargs) -> None:
        now = time.perf_counter()
        self._seconds += now - self._started
        self._started = now
        self.num_steps += 1


@dataclass
class Rates:
    """What Throughput counted over some steps.

    Attributes:
        totals: samples, visual and text tokens of all ranks; GiB.
    """

    num_steps: int
    seconds: float
    totals: HostCopy

    def read(self) -> dict[str, float]:
        """Each per second, and the memory."""
        *counts, memory = self.totals.read()
        samples, visual, text = (count / max(self.seconds, 1e-9) for count in counts)
        return {
            "samples_per_second": round(samples, 3),
            "visual_tokens_per_second": round(visual, 1),
            "text_tokens_per_second": round(text, 1),
            "peak_memory_gib": round(memory, 3),
        }


def peak_memory() -> float:
    """GiB this process has held at most: of the GPU where it has one, else of main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
