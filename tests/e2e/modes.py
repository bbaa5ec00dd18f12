"""For tests of training modes: a trainer with given flags, a complete run, a loaded folder, logits."""

import torch
from training_parts import flags

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.builder import load_pretrained_model
from llava.train import saving
from llava.train.train import prepare

IDS = torch.tensor([[1, 5, IMAGE_TOKEN_INDEX, 7, 8]])
IMAGES = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
LORA = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "learning_rate": 1e-2}


def trainer_of(parts, output_dir, **changes):
    """A trainer before its first step; no file has been written."""
    common = {"version": "qwen_2", "max_steps": 2, "save_strategy": "no"}
    return prepare(flags(parts, output_dir, "conversations.json", **{**common, **changes}))


def run(parts, output_dir, **changes):
    """Train on conversations to the end, and return the model."""
    trainer = trainer_of(parts, output_dir, **{"save_strategy": "steps", **changes})
    checkpoints = saving.checkpoints(output_dir)
    trainer.train(resume_from_checkpoint=str(checkpoints[-1]) if checkpoints else None)
    trainer.save_result()
    return trainer.model


def load(folder, base=None, **options):
    return load_pretrained_model(str(folder), base and str(base), **options)[1]


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS, images=IMAGES).logits
