"""Vision around any causal language model: tower, projector and merge, as two mixins."""

# B sequences, T prompt tokens, T' merged tokens, I images of the batch, M tokens an image, D model width

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_PATCH_TOKEN,
    IGNORE_INDEX,
)
from llava.model.loss import language_loss
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.tower import VisionTower
from llava.model.multimodal_merge import MergedInputs, merge, plan_merge
from llava.model.multimodal_projector.base import Projector
from llava.model.multimodal_projector.builder import build_projector, projector_class


class LlavaMetaModel:
    """The decoder's half: owns vision_tower and mm_projector, named as in published checkpoints."""

    def __init__(self, config):
        super().__init__(config)
        if config.mm_vision_tower is not None:
            self.build_vision(config)

    def _init_weights(self, module: nn.Module) -> None:
        """What a checkpoint lacks; runs child by child, a projector with weights of its own as a whole last.

        transformers has its say after a part of the projector has reset itself: it knows the common layers
        alone, and asks only modules that hold weights themselves.
        """
        projector = getattr(self, "mm_projector", nn.Identity())
        if module in projector.modules() and hasattr(module, "reset_parameters"):
            module.reset_parameters()
        super()._init_weights(module)

    def build_vision(self, config) -> None:
        """Tower and projector of the configured shape, with initial weights."""
        kind = projector_class(config.mm_projector_type)
        self.vision_tower = build_vision_tower(config, kind.needs_levels, kind.needs_attention)
        config.mm_hidden_size = self.vision_tower.hidden_size
        config.mm_vision_levels = self.vision_tower.levels
        self.mm_projector = build_projector(config, config.hidden_size)


class LlavaMetaForCausalLM:
    """The causal language model's half: images in forward and generate, loss where labels are.

    Attributes:
        decoder_class: of the decoder, which stands where the family's base_model_prefix says (model or
            transformer), as in published checkpoints.
        takes_position_ids: False where positions can only be counted along the row.
    """

    decoder_class: type[LlavaMetaModel]
    takes_position_ids = True

    def __init__(self, config):
        # Past the family's own constructor, which would build a text-only decoder
        PreTrainedModel.__init__(self, config)
        setattr(self, self.base_model_prefix, self.decoder_class(config))
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_model(self) -> LlavaMetaModel:
        return self.base_model

    def get_vision_tower(self) -> VisionTower | None:
        return getattr(self.get_model(), "vision_tower", None)

    def get_projector(self) -> Projector | None:
        return getattr(self.get_model(), "mm_projector", None)

    def train(self, mode: bool = True):
        """Vision parts that are frozen stay in evaluation mode: their running statistics do not move."""
        super().train(mode)
        for part in (self.get_vision_tower(), self.get_projector()):
            if part is not None and not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    @property
    def num_visual_tokens(self) -> int:
        """M, tokens an image, at model.config.scale_factor."""
        return self.tokens_per_image()

    def tokens_per_image(self, scale_factor: int | None = None) -> int:
        """M at s, by default model.config.scale_factor.

        Raises:
            ValueError: if s does not divide the grid, or is given for a projector that does not compress.
        """
        tower, projector = self.get_vision_tower(), self.get_projector()
        if scale_factor is not None and not projector.compresses:
            raise ValueError(
                f"scale_factor={scale_factor} came, but {type(projector).__name__} does not compress; "
                "leave it out, or train with a compressing --mm_projector_type."
            )
        return projector.num_tokens(tower.num_patches, scale_factor or self.config.scale_factor)

    def encode_images(self, images: Tensor, scale_factor: int | None = None) -> Tensor:
        """float[I, 3, H, W], normalised, to float[I, M, D]; s is by default model.config.scale_factor."""
        tower, projector = self.get_vision_tower(), self.get_projector()
        features = tower(images.to(tower.device))
        features = features.to(next(iter(projector.parameters()), features.selected).dtype)
        if not projector.compresses:
            return projector(features)
        return projector(features, scale_factor or self.config.scale_factor)

    def merge_inputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        images: Tensor | list[Tensor] | None = None,
        image_sizes: list[tuple[int, int]] | None = None,
        padding_side: str = "left",
        scale_factor: int | None = None,
    ) -> MergedInputs:
        """Encode the images and put their tokens into the prompts.

        Args:
            input_ids: long[B, T] with one IMAGE_TOKEN_INDEX for each image.
            attention_mask: bool[B, T], False on padding of either side.
            labels: long[B, T] or None.
            images: float[I, 3, H, W], or a list of float[3, H, W], flat over the batch.
            image_sizes: (width, height) of the originals; what square and pad need is in the pixels already.
            padding_side: of the result.
            scale_factor: s of this call, by default model.config.scale_factor.
        Raises:
            ValueError: if placeholders and images differ in number, or the model has no vision tower.
        """
        images = self._stack_images(images)
        num_images = 0 if images is None else images.shape[0]
        device = self.get_input_embeddings().weight.device
        # The plan reads values on the CPU once, ahead of all device work; nothing after it waits.
        plan = plan_merge(
            input_ids.cpu(),
            None if attention_mask is None else attention_mask.cpu(),
            None if labels is None else labels.cpu(),
            [self.tokens_per_image(scale_factor)] * num_images if num_images else [],
            padding_side,
        ).to(device)
        text_embeds = self.get_input_embeddings()(plan.token_ids)
        return merge(plan, text_embeds, self._image_features(images, text_embeds, scale_factor))

    def _stack_images(self, images: Tensor | list[Tensor] | None) -> Tensor | None:
        if images is None or len(images) == 0:
            return None
        if self.get_vision_tower() is None:
            raise ValueError("images came, but this model has no vision tower; load a multimodal checkpoint.")
        if isinstance(images, list):
            images = torch.stack([image.squeeze(0) if image.ndim == 4 else image for image in images])
        return images

    def _image_features(self, images: Tensor | None, like: Tensor, scale_factor: int | None) -> Tensor:
        """float[V, D].

        In training, a batch without images encodes a blank one and keeps none of its tokens, so that every
        rank takes part in every collective.
        """
        if images is not None:
            return self.encode_images(images, scale_factor).flatten(0, 1)
        if self.training and self.get_vision_tower() is not None:
            side = self.get_vision_tower().image_size
            blank = like.new_zeros(1, 3, side, side)
            with kept_statistics(self.get_projector()):
                return self.encode_images(blank, scale_factor).flatten(0, 1)[:0]
        return like.new_zeros(0, like.shape[-1])

    def prepare_inputs_labels_for_multimodal(
        self, input_ids, position_ids, attention_mask, past_key_values, labels, images, image_sizes=None
    ):
        """LLaVA's own call: (None, position_ids, attention_mask, past_key_values, inputs_embeds, labels)."""
        side = self.config.tokenizer_padding_side
        merged = self.merge_inputs(input_ids, attention_mask, labels, images, image_sizes, side)
        return (
            None,
            merged.position_ids,
            merged.attention_mask,
            past_key_values,
            merged.inputs_embeds,
            merged.labels,
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values=None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        images: Tensor | list[Tensor] | None = None,
        image_sizes: list[tuple[int, int]] | None = None,
        scale_factor: int | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """A causal language model's forward that also takes images, and s, the compression of this call.

        In training with labels the logits of labelled positions alone are computed, and none are returned.
        """
        if inputs_embeds is None and (images is not None or (self.training and labels is not None)):
            side = self.config.tokenizer_padding_side
            merged = self.merge_inputs(
                input_ids, attention_mask, labels, images, image_sizes, side, scale_factor
            )
            input_ids, inputs_embeds, labels = None, merged.inputs_embeds, merged.labels
            attention_mask, position_ids = merged.attention_mask, merged.position_ids
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
        }
        if self.training and labels is not None:
            num_items = kwargs.pop("num_items_in_batch", None)
            outputs = self.get_decoder()(**inputs, **kwargs)
            rows, targets = outputs.last_hidden_state[:, :-1], labels[:, 1:]
            labelled = targets != IGNORE_INDEX
            loss = language_loss(rows[labelled], targets[labelled], self.lm_head, self.config, num_items)
            return CausalLMOutputWithPast(loss=loss, past_key_values=outputs.past_key_values)
        return super().forward(**inputs, labels=labels, **kwargs)

    @torch.no_grad()
    def generate(
        self, inputs: Tensor | None = None, images=None, image_sizes=None, scale_factor=None, **kwargs
    ):
        """transformers' generate, with images; returns the new tokens only.

        Args:
            inputs: long[B, T] with one IMAGE_TOKEN_INDEX for each image; input_ids is taken too.
            images, image_sizes, attention_mask, scale_factor: as merge_inputs.
        Returns:
            long[B, new], or what transformers returns for return_dict_in_generate.
        """
        input_ids = kwargs.pop("input_ids", inputs)
        if kwargs.get("inputs_embeds") is None:
            if input_ids is None:
                raise ValueError("generate needs input_ids or inputs_embeds; both are missing.")
            kwargs.pop("inputs_embeds", None)
            kwargs.pop("position_ids", None)  # of the prompt before its images were merged in
            mask = kwargs.pop("attention_mask", None)
            merged = self.merge_inputs(input_ids, mask, images=images, scale_factor=scale_factor)
            kwargs |= {"inputs_embeds": merged.inputs_embeds, "attention_mask": merged.attention_mask.long()}
        return super().generate(**kwargs)

    def initialize_vision_tokenizer(self, fields, tokenizer) -> None:
        """Add the tokens of --mm_use_im_patch_token and --mm_use_im_start_end; new rows start at the mean."""
        tokens = [DEFAULT_IMAGE_PATCH_TOKEN] if fields.mm_use_im_patch_token else []
        tokens += [DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN] if fields.mm_use_im_start_end else []
        if tokens:
            tokenizer.add_tokens(tokens, special_tokens=True)
            self.resize_token_embeddings(max(len(tokenizer), self.get_input_embeddings().num_embeddings))


@contextmanager
def kept_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms inside learn no running statistics from what passes through within the block."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
