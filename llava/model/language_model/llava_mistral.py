"""LLaVA on Mistral."""

from torch import nn
from transformers import MistralConfig, MistralForCausalLM, MistralModel

from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel
from llava.model.vision_config import VisionFields


class LlavaMistralConfig(VisionFields, MistralConfig):
    model_type = "llava_mistral"


class LlavaMistralModel(LlavaMetaModel, MistralModel):
    config_class = LlavaMistralConfig


class LlavaMistralForCausalLM(LlavaMetaForCausalLM, MistralForCausalLM):
    config_class = LlavaMistralConfig

    def __init__(self, config: LlavaMistralConfig):
        super(MistralForCausalLM, self).__init__(
            config
        )  # MistralForCausalLM's own would build a text-only decoder
        self.model = LlavaMistralModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
