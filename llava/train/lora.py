"""Adds LoRA adapters to a loaded model, and prepares quantised weights for training."""

from torch import nn
from transformers import PreTrainedModel

from llava.model.adapters import VISION_MODULES, linear_maps
from llava.train.arguments import TrainingArguments
from llava.train.trainable import LANGUAGE_MODEL, part_of


def add_adapters(model: PreTrainedModel, arguments: TrainingArguments, base: str) -> None:
    """Put adapters on all linear maps of the language model but its head; the model keeps its class.

    Args:
        base: the name of the base model, which is stored in the adapters' folder.
    """
    from peft import LoraConfig

    config = LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        bias=arguments.lora_bias,
        target_modules=linear_maps(model),
        exclude_modules=VISION_MODULES,
        task_type="CAUSAL_LM",
    )
    model.add_adapter(config)
    config.base_model_name_or_path = base


def prepare_quantized(model: PreTrainedModel) -> None:
    """Convert the language model's norms to float32 (Dettmers et al. 2023, "QLoRA").

    transformers' Trainer accepts quantised weights only with adapters. Here the projector may be trained
    without them, so the model is marked as if it had some.
    """
    for name, module in model.named_modules():
        if part_of(name) == LANGUAGE_MODEL and not isinstance(module, nn.Linear):
            for parameter in module.parameters(recurse=False):
                if parameter.ndim == 1:
                    parameter.data = parameter.data.float()
    model._hf_peft_config_loaded = True
