"""A tower, one of our projectors and any language model of transformers, as one transformers model.

The training classes (llava.model.language_model) are different ones. Their names of weights, their calls and
their placeholder -200 are LLaVA's, and published checkpoints and evaluators depend on them. Both have the
same code for tower, projector, tiling and the way from images to features.
"""

# V views of all images, M tokens a view, L positions of an image, B sequences, T tokens, D model width

import torch
from torch import Tensor, nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast, LlavaModelOutputWithPast
from transformers.utils.generic import can_return_tuple

from llava.errors import UserError
from llava.hf.configuration import VisualPrismConfig
from llava.hf.plain import left_alone
from llava.hf.views import grouped
from llava.model.image_encoder import ImageEncoder
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_projector.base import Projector
from llava.model.multimodal_projector.builder import build_projector, projector_class
from llava.tiling import num_positions


class VisualPrismPreTrainedModel(PreTrainedModel):
    config_class = VisualPrismConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_attention_backend = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Projector):  # its parts were initialised, but not in the projector's way
            module.reset_parameters()
        if isinstance(module, VisualPrismModel) and hasattr(module, "image_newline"):
            init.normal_(module.image_newline, std=self.config.text_config.hidden_size**-0.5)


class VisualPrismModel(ImageEncoder, VisualPrismPreTrainedModel):
    """The model without the head; it has image_newline float[D] if mm_patch_merge_type is spatial_unpad."""

    def __init__(self, config: VisualPrismConfig):
        super().__init__(config)
        fields, width = config.vision_fields(), config.text_config.hidden_size
        kind = projector_class(fields.mm_projector_type)
        self.vision_tower = build_vision_tower(fields, kind.needs_levels, kind.needs_attention)
        fields.mm_hidden_size = self.vision_tower.hidden_size
        fields.mm_vision_levels = self.vision_tower.levels
        self.multi_modal_projector = left_alone(build_projector(fields, width))
        if fields.mm_patch_merge_type == "spatial_unpad":
            self.image_newline = nn.Parameter(torch.empty(width))
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_model(self) -> "VisualPrismModel":
        return self

    def get_projector(self) -> Projector:
        return self.multi_modal_projector

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor,
        image_sizes: Tensor | None = None,
        scale_factors: Tensor | None = None,
        **others,
    ) -> BaseModelOutputWithPooling:
        """The features that replace the images' placeholder tokens.

        Args:
            pixel_values, image_sizes, scale_factors: as VisualPrismImageProcessor makes them.
        Returns:
            pooler_output: for each image float[L, D], with the separators of its tiles.
        """
        factors = [None] * len(pixel_values) if scale_factors is None else scale_factors.tolist()
        images, first, found = grouped(self.tiling, len(pixel_values), image_sizes), 0, []
        encoded = self._encoded(pixel_values, factors)
        for size, count in images:
            views = torch.stack(encoded[first : first + count])  # [count, M, D]
            found.append(self._laid_out(views, size))
            first += count
        return BaseModelOutputWithPooling(pooler_output=found)

    def _encoded(self, pixel_values: Tensor, factors: list[int | None]) -> list[Tensor]:
        """The tokens of each view, float[M, D]; the views with the same s are encoded in one call."""
        encoded: dict[int, Tensor] = {}
        for factor in dict.fromkeys(factors):
            places = [place for place, own in enumerate(factors) if own == factor]
            views = pixel_values if len(places) == len(factors) else pixel_values[places]
            encoded |= dict(zip(places, self.encode_images(views, factor), strict=True))
        return [encoded[place] for place in range(len(factors))]

    def _laid_out(self, views: Tensor, size: tuple[int, int]) -> Tensor:
        """Lay out one image's views, float[T, M, D], as float[L, D]."""
        layout = self.tiling.layout(size, views.shape[1], len(views)).to(views.device)
        tokens = views.flatten(0, 1)
        # COLUMN_END (-1) and ROW_END (-2) come after the tokens, in this order
        index = torch.where(layout < 0, len(tokens) - 1 - layout, layout)
        return torch.cat([tokens, self._ends().to(tokens)])[index]

    def _ends(self) -> Tensor:
        """The embeddings of COLUMN_END and ROW_END, float[2, D]; float[0, D] if there are none."""
        if self.config.image_aspect_ratio == "slice":
            embed = self.get_input_embeddings()
            return embed(torch.tensor(self.config.slice_separator_ids, device=embed.weight.device))
        if self.tiling.learns_row_end:
            return self.image_newline.expand(2, -1)
        return torch.empty(0, self.config.text_config.hidden_size)

    def get_placeholder_mask(
        self, input_ids: Tensor | None, inputs_embeds: Tensor, image_features: Tensor
    ) -> Tensor:
        """The mask bool[B, T, D], True at the positions for image_features float[N, D].

        Raises:
            UserError: if the number of such positions is not N.
        """
        if input_ids is None:
            mark = torch.tensor(self.config.image_token_id, device=inputs_embeds.device)
            mask = (inputs_embeds == self.get_input_embeddings()(mark)).all(-1)
        else:
            mask = input_ids == self.config.image_token_id
        if not torch.compiler.is_compiling() and (found := int(mask.sum())) != len(image_features):
            raise UserError(
                f"the prompts have {found} image tokens, but the images need {len(image_features)}; pass "
                "the processor's output unchanged, and give scale_factor only to it or to generate."
            )
        return mask.unsqueeze(-1).expand_as(inputs_embeds).to(inputs_embeds.device)

    def num_image_tokens(self, size: tuple[int, int], scale_factor: int | None = None) -> int:
        """L, the number of positions of an image of (width, height) pixels."""
        return num_positions(self.tiling, size, self.tokens_per_view(scale_factor))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        scale_factors: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values=None,
        inputs_embeds: Tensor | None = None,
        **kwargs,
    ) -> LlavaModelOutputWithPast:
        """As transformers' LlavaModel, but images are given as get_image_features takes them."""
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("give either input_ids or inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        features = None
        if pixel_values is not None:
            images = self.get_image_features(pixel_values, image_sizes, scale_factors, return_dict=True)
            features = torch.cat(images.pooler_output).to(inputs_embeds.device, inputs_embeds.dtype)
            mask = self.get_placeholder_mask(input_ids, inputs_embeds, features)
            inputs_embeds = inputs_embeds.masked_scatter(mask, features)
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        return LlavaModelOutputWithPast(**outputs, image_hidden_states=features)


class VisualPrismForConditionalGeneration(VisualPrismPreTrainedModel, GenerationMixin):
    """The whole model: VisualPrismModel and the head of its language model."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: VisualPrismConfig):
        super().__init__(config)
        self.model = VisualPrismModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(self, pixel_values: Tensor, **options):
        """As VisualPrismModel.get_image_features."""
        return self.model.get_image_features(pixel_values, **options)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        scale_factors: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values=None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> LlavaCausalLMOutputWithPast:
        """As transformers' LlavaForConditionalGeneration, with images as get_image_features takes them."""
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            scale_factors=scale_factors,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **{**kwargs, "return_dict": True},
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits, loss = self.lm_head(outputs.last_hidden_state[:, kept]), None
        if labels is not None:
            vocab_size = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        return LlavaCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )

    def generate(self, inputs: Tensor | None = None, scale_factor: int | None = None, **kwargs):
        """transformers' generate.

        Args:
            scale_factor: the s of all images, in place of the one that the processor made the prompts for.
        """
        if scale_factor is not None and kwargs.get("pixel_values") is not None:
            inputs = kwargs.pop("input_ids", inputs)
            inputs, kwargs = self._at_scale(inputs, kwargs, scale_factor)
        return super().generate(inputs, **kwargs)

    def _at_scale(self, input_ids: Tensor | None, kwargs: dict, scale_factor: int) -> tuple[Tensor, dict]:
        """Give each image in the prompts its number of tokens at s, and pad on the left.

        Returns:
            the new prompts, and `kwargs` with the options that fit them.
        """
        if input_ids is None:
            raise UserError("scale_factor changes prompts, so generate needs input_ids as well.")
        model, pixels, sizes = self.model, kwargs["pixel_values"], kwargs.get("image_sizes")
        factors = kwargs.get("scale_factors")
        counts, first = [], 0
        for size, count in grouped(model.tiling, len(pixels), sizes):
            old = None if factors is None else int(factors[first])
            counts.append(tuple(model.num_image_tokens(size, s) for s in (old, scale_factor)))
            first += count
        mask, mark = kwargs.pop("attention_mask", None), self.config.image_token_id
        mask = torch.ones_like(input_ids) if mask is None else mask
        rows, left = [], iter(counts)
        for ids, kept in zip(input_ids.tolist(), mask.bool().tolist(), strict=True):
            words, row = [token for token, attended in zip(ids, kept, strict=True) if attended], []
            while words:
                old, new = next(left) if words[0] == mark else (1, 1)
                row += words[:1] * new
                del words[:old]
            rows.append(row)
        length = max(map(len, rows))
        pad = self.generation_config.pad_token_id or 0
        padded = [[pad] * (length - len(row)) + row for row in rows]
        attended = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
        changed = {
            "attention_mask": mask.new_tensor(attended),
            "scale_factors": torch.full((len(pixels),), scale_factor),
        }
        return input_ids.new_tensor(padded), kwargs | changed
