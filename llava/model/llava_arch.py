"""Two mixins that add vision (tower, projector and merge) to any causal language model."""

# B sequences, T' merged tokens, I images of the batch, V views of all images (tiles; one an image for square
# and pad), M tokens a view, D model width. T is prompt tokens in ids, and the tiles of an image in pixels.

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import is_flash_attention_requested

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.errors import UserError
from llava.model.files import first_line
from llava.model.image_encoder import ImageEncoder
from llava.model.loss import language_loss, token_sums
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_merge import (
    ImageSpan,
    MergedInputs,
    OnHost,
    image_span,
    merge,
    one_row,
    places_and_targets,
    plan_merge,
    warn_of_padding,
)
from llava.model.multimodal_projector.builder import build_projector, projector_class
from llava.model.packed_rows import attention_mask as mask_of_branches
from llava.model.recomputation import recompute_activations
from llava.model.repetition import RepetitionPenalty
from llava.model.tokenizer import separator_ids
from llava.model.training_cache import KeepsNothing
from llava.model.vocabulary import add_words
from llava.tiling import TILED

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


if TYPE_CHECKING:
    from transformers import PreTrainedModel as Decoder
else:
    Decoder = object  # mixed into a decoder of transformers


class LlavaMetaModel(Decoder):
    """The decoder's mixin, with vision_tower, mm_projector and, if mm_patch_merge_type is spatial_unpad, the
    learnt embedding image_newline float[D]; the names are those of published checkpoints."""

    def __init__(self, config):
        super().__init__(config)
        if config.mm_vision_tower is not None:
            self.build_vision(config)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise what a checkpoint lacks.

        transformers calls this only for modules that hold weights themselves, and for children first. A part
        of the projector resets itself before transformers' own initialisation, which knows only the common
        layers. A projector that holds weights itself comes last and is reset as a whole.
        """
        projector = getattr(self, "mm_projector", nn.Identity())
        if module in projector.modules() and hasattr(module, "reset_parameters"):
            module.reset_parameters()
        if module is self and hasattr(self, "image_newline"):
            self._reset_newline()
        super()._init_weights(module)

    def _reset_newline(self) -> None:
        init.normal_(self.image_newline, std=self.config.hidden_size**-0.5)

    def build_vision(self, config) -> None:
        """Build tower, projector and newline of the configured shape, with initial weights."""
        kind = projector_class(config.mm_projector_type)
        self.vision_tower = build_vision_tower(config, kind.needs_levels, kind.needs_attention)
        config.mm_hidden_size = self.vision_tower.hidden_size
        config.mm_vision_levels = self.vision_tower.levels
        self.mm_projector = build_projector(config, config.hidden_size)
        config.mm_projector_input_norm = self.mm_projector.norms_input
        if config.mm_patch_merge_type == "spatial_unpad":
            self.image_newline = nn.Parameter(torch.empty(config.hidden_size))
            self._reset_newline()


class LlavaMetaForCausalLM(ImageEncoder):
    """The causal language model's mixin: forward and generate take images, and labels give a loss.

    Attributes:
        decoder_class: the class of the decoder. Its attribute has the name of the family's base_model_prefix
            (model or transformer), as in published checkpoints.
        takes_position_ids: False if the family can only count positions along the row.
        recompute_above: with gradient checkpointing, the number of positions up to which a training batch
            keeps its activations; 0 recomputes the activations of every batch.
    """

    decoder_class: type[LlavaMetaModel]
    takes_position_ids = True
    recompute_above = 0

    def __init__(self, config):
        # Skips the family's own constructor, which would build a text-only decoder
        PreTrainedModel.__init__(self, config)
        setattr(self, self.base_model_prefix, self.decoder_class(config))
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args, **kwargs) -> str:
        """Run transformers' own check, before any weight is loaded; an error becomes one line."""
        try:
            return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)
        # the last two come from kernels that cannot be fetched from the hub or are not built for this machine
        except (ImportError, ValueError, OSError, RuntimeError) as error:
            if attn_implementation is None:
                raise
            raise UserError(
                f"--attn_implementation {attn_implementation} cannot be used here ({first_line(error)}); "
                "choose another, or leave it out."
            ) from error

    def get_model(self) -> LlavaMetaModel:
        return self.base_model

    def merge_inputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        images: Tensor | list[Tensor] | None = None,
        image_sizes: list[tuple[int, int]] | None = None,
        padding_side: str = "left",
        scale_factor: int | None = None,
        sequence_ids: Tensor | None = None,
        branch_ids: Tensor | None = None,
        on_host: OnHost | None = None,
    ) -> MergedInputs:
        """Encode the images and put their tokens into the prompts.

        The plan is made on the CPU. If the ids are there or in on_host, this does not wait for the device.

        Args:
            input_ids: long[B, T] with one IMAGE_TOKEN_INDEX for each image.
            attention_mask: bool[B, T], False on padding, which may be on either side.
            labels: long[B, T] or None.
            images: all images of the batch, in the order of their placeholders: float[I, 3, H, W] with one
                view each; float[I, T, 3, H, W] with T tiles each; or a list of float[3, H, W] and
                float[T, 3, H, W].
            image_sizes: (width, height) of the original images, which say how tiles are put together; square
                and pad do not need them.
            padding_side: the side of the padding in the result.
            scale_factor: s of this call, by default model.config.scale_factor.
            sequence_ids, branch_ids: long[B, T] of packed rows, as `plan_merge` takes them.
            on_host: the integer tensors on the CPU, used in place of those given.
        Raises:
            UserError: if placeholders and images differ in number, the model has no vision tower, or the
                tiles are not those of image_sizes.
        """
        views, num_views = self._views(images)
        embed = self.get_input_embeddings()
        # the device works on the images while the plan is made
        features = self._image_features(views, embed.weight, scale_factor, labels is not None)
        host = on_host or OnHost.of(input_ids, attention_mask, labels, sequence_ids, branch_ids)
        plan = plan_merge(
            host.input_ids,
            host.attention_mask,
            host.labels,
            self._spans(num_views, image_sizes, scale_factor),
            padding_side,
            host.sequence_ids,
            host.branch_ids,
        ).to(embed.weight.device)
        newline = getattr(self.get_model(), "image_newline", None)
        return merge(plan, embed(plan.token_ids), features, newline)

    def _spans(self, num_views: list[int], image_sizes, scale_factor: int | None) -> list[ImageSpan]:
        """The span that each image puts into its prompt, with its tokens numbered over the batch."""
        if not num_views:
            return []
        tiling, separators = self.tiling, None
        if self.config.image_aspect_ratio == "slice":
            separators = self.config.slice_separator_ids
            if separators is None:
                raise UserError(
                    "config.slice_separator_ids, the words between the tiles of slice, is missing; load the "
                    "model with load_pretrained_model, or call "
                    "model.initialize_vision_tokenizer(config, tokenizer)."
                )
        if tiling.learns_row_end and not hasattr(self.get_model(), "image_newline"):
            raise UserError(
                "mm_patch_merge_type spatial_unpad needs a learnt image_newline, but this model has none; "
                "choose flat or spatial, or train the model with --mm_patch_merge_type spatial_unpad."
            )
        sizes: list = [None] * len(num_views)
        if image_sizes is not None and self.config.image_aspect_ratio in TILED:
            sizes = [tuple(map(int, size)) for size in image_sizes]
        if len(sizes) != len(num_views):
            raise UserError(f"{len(num_views)} images came with {len(sizes)} image_sizes; give one for each.")
        num_tokens = self.tokens_per_view(scale_factor)
        spans, first, layouts = [], 0, {}
        for size, count in zip(sizes, num_views, strict=True):
            if (size, count) not in layouts:
                layouts[size, count] = tiling.layout(size, num_tokens, count)
            spans.append(image_span(layouts[size, count], first, separators))
            first += count * num_tokens
        return spans

    def prepare_inputs_labels_for_multimodal(
        self, input_ids, position_ids, attention_mask, past_key_values, labels, images, image_sizes=None
    ):
        """LLaVA's own call.

        Returns:
            (None, position_ids, attention_mask, past_key_values, inputs_embeds, labels).
        """
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
        sequence_ids: Tensor | None = None,
        branch_ids: Tensor | None = None,
        on_host: OnHost | None = None,
        logits_to_keep: int | Tensor = 0,
        sums_tokens: bool = False,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """A causal language model's forward that also takes images, and s, the compression of this call.

        With labels, in training or with sums_tokens, only the logits of labelled positions are computed, and
        none are returned.

        Args:
            sequence_ids: long[B, T] for packed rows: the running number of each token's sequence in its row,
                -1 on padding. No sequence attends to another. The first label of each must be IGNORE_INDEX,
                since the token before it belongs to another sequence.
            branch_ids: long[B, T] for sequences of several records with a common prefix: 0 on the prefix, and
                on the other tokens the number of the record, from 1. No branch attends to another.
            on_host: as in merge_inputs.
            logits_to_keep: as in transformers. As it is named here, `generate` asks for the last logits only.
            sums_tokens: return what llava.model.loss.token_sums gives, float64[3], as the loss.
        """
        is_packed, has_branches = sequence_ids is not None, branch_ids is not None
        scores_labels = labels is not None and (self.training or sums_tokens or has_branches)
        scored = None
        if input_ids is not None and attention_mask is None and past_key_values is None and not is_packed:
            self._warn_of_padding(input_ids if on_host is None else on_host.input_ids)
        if inputs_embeds is None and (images is not None or is_packed or scores_labels):
            side = self.config.tokenizer_padding_side
            merged = self.merge_inputs(
                *(input_ids, attention_mask, labels, images, image_sizes, side, scale_factor),
                *(sequence_ids, branch_ids, on_host),
            )
            if is_packed and not has_branches and is_flash_attention_requested(self.config):
                merged = one_row(merged)
            input_ids, inputs_embeds, labels = None, merged.inputs_embeds, merged.labels
            attention_mask, position_ids = merged.attention_mask, merged.position_ids
            scored = merged.label_places, merged.targets
            if has_branches:
                kwargs["use_cache"] = False
                attention_mask = mask_of_branches(
                    merged.visible_until, position_ids, self.config, inputs_embeds.dtype
                )
            elif is_packed:
                # Without a mask and a cache, transformers finds the sequences by positions that restart.
                attention_mask, kwargs["use_cache"] = None, False
            elif not merged.is_padded or ((self.training or scores_labels) and self._padding_is_unseen(side)):
                # else transformers would ask the device whether the mask hides anything or positions restart
                attention_mask = position_ids = None
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        if past_key_values is not None:  # newer transformers calls it cache, and warns if it gets both
            inputs["past_key_values"] = past_key_values
        if scores_labels:
            assert labels is not None
            num_items = kwargs.pop("num_items_in_batch", None)
            kwargs["use_cache"] = False  # nothing is generated from a training step
            # Positions that a caller gives may restart; transformers checks that only if there is no cache
            has_positions = is_packed or position_ids is not None
            if attention_mask is None and self.takes_position_ids and not has_positions:
                inputs["past_key_values"] = KeepsNothing()
            if self.training and self.recompute_above:
                recompute_activations(self.get_decoder(), labels.numel() > self.recompute_above)
            outputs = self.get_decoder()(**inputs, **kwargs)
            label_places, targets = scored or places_and_targets(labels)
            rows = outputs.last_hidden_state.flatten(0, 1)[label_places]
            if sums_tokens:
                return CausalLMOutputWithPast(loss=token_sums(rows, targets, self.lm_head))
            loss = language_loss(rows, targets, self.lm_head, self.config, num_items)
            return CausalLMOutputWithPast(loss=loss)
        return super().forward(**inputs, labels=labels, logits_to_keep=logits_to_keep, **kwargs)

    def _padding_is_unseen(self, padding_side: str) -> bool:
        """Whether padded rows need no mask, which lets attention run its causal kernel.

        This holds for padding on the right: no token of a causal model attends to it, and training does not
        read its outputs. Flash attention keeps its mask, since its kernel skips what the mask hides.
        """
        by_torch = self.config._attn_implementation in ("sdpa", "eager")
        return by_torch and self.takes_position_ids and padding_side == "right"

    def _warn_of_padding(self, input_ids: Tensor, pad_token_id: int | None = None) -> None:
        own = (pad_token_id, self.generation_config.pad_token_id, self.config.pad_token_id)
        warn_of_padding(input_ids, own, words=(self.config.bos_token_id, self.config.eos_token_id))

    def save_pretrained(self, *args, **kwargs) -> None:
        """Save as transformers does, but without do_sample leave out the settings of sampling.

        They have no effect then, and transformers refuses them. Vicuna's generation_config.json has them.
        """
        if not self.generation_config.do_sample:
            for name in SAMPLING:
                setattr(self.generation_config, name, None)
        super().save_pretrained(*args, **kwargs)

    @torch.no_grad()
    def generate(
        self, inputs: Tensor | None = None, images=None, image_sizes=None, scale_factor=None, **kwargs
    ):
        """transformers' generate, with images; returns the new tokens only.

        Args:
            inputs: long[B, T] with one IMAGE_TOKEN_INDEX for each image; it may be named input_ids.
            images, image_sizes, attention_mask, scale_factor: as in merge_inputs.
            repetition_penalty: applies to the prompt's text tokens too.
        Returns:
            long[B, new], or what transformers returns with return_dict_in_generate.
        """
        input_ids = kwargs.pop("input_ids", inputs)
        if kwargs.get("inputs_embeds") is None:
            if input_ids is None:
                raise UserError("generate needs input_ids or inputs_embeds; both are missing.")
            kwargs.pop("inputs_embeds", None)
            kwargs.pop("position_ids", None)  # they are those of the prompt without its images
            mask = kwargs.pop("attention_mask", None)
            if mask is None:
                self._warn_of_padding(input_ids, kwargs.get("pad_token_id"))
            merged = self.merge_inputs(
                input_ids, mask, images=images, image_sizes=image_sizes, scale_factor=scale_factor
            )
            kwargs |= {"inputs_embeds": merged.inputs_embeds, "attention_mask": merged.attention_mask.long()}
            if (penalty := kwargs.get("repetition_penalty") or 1.0) != 1.0:
                penalise = RepetitionPenalty(penalty, input_ids, mask)
                kwargs["logits_processor"] = [penalise, *(kwargs.get("logits_processor") or [])]
                kwargs["repetition_penalty"] = 1.0  # else transformers would penalise the answer again
        return super().generate(**kwargs)

    def initialize_vision_tokenizer(self, fields, tokenizer) -> None:
        """Add the tokens of --mm_use_im_patch_token and --mm_use_im_start_end, with the mean embedding, and
        set the ids of the separators between tiles if they are not set."""
        if self.config.slice_separator_ids is None:
            self.config.slice_separator_ids = separator_ids(tokenizer)
        tokens = [DEFAULT_IMAGE_PATCH_TOKEN] if fields.mm_use_im_patch_token else []
        tokens += [DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN] if fields.mm_use_im_start_end else []
        if tokens:
            add_words(self, tokenizer, tokens)
