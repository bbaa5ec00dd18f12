"""LLaVA on MPT."""

from typing import ClassVar

from transformers import MptConfig, MptForCausalLM, MptModel

from llava.errors import UserError
from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel
from llava.model.multimodal_projector.builder import VisionFields


class LlavaMptConfig(VisionFields, MptConfig):
    model_type = "llava_mpt"
    attribute_map: ClassVar = {**MptConfig.attribute_map, "max_position_embeddings": "max_seq_len"}


class LlavaMptModel(LlavaMetaModel, MptModel):
    config_class = LlavaMptConfig

    def forward(
        self, input_ids=None, past_key_values=None, attention_mask=None, inputs_embeds=None, **kwargs
    ):
        """Run MptModel's forward.

        Raises UserError beyond max_seq_len tokens, where MptModel's table of attention biases ends.
        """
        length = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
        if past_key_values is not None:  # transformers 5.24 calls it cache, and takes either name
            kwargs["past_key_values"] = past_key_values
        held = past_key_values if past_key_values is not None else kwargs.get("cache")
        length += 0 if held is None else held.get_seq_length()
        if length > self.config.max_seq_len:
            raise UserError(
                f"the sequence has {length} tokens, but max_seq_len in this MPT's config.json is "
                f"{self.config.max_seq_len}; raise it there (no weight depends on it), or lower "
                "--model_max_length or max_new_tokens."
            )
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
        )


class LlavaMptForCausalLM(LlavaMetaForCausalLM, MptForCausalLM):
    config_class = LlavaMptConfig
    decoder_class = LlavaMptModel
    takes_position_ids = False  # only the distances between tokens count (ALiBi)
