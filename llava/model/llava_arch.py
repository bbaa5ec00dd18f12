"""Vision around any causal language model: tower, projector and merge, as two mixins."""

# B sequences, T' merged tokens, I images of the batch, V views of them all (tiles; for square and pad one an
# image), M tokens a view, D model width; T prompt tokens in ids, tiles of one image in pixels

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
    places_before_labels,
    plan_merge,
    warn_of_padding,
)
from llava.model.multimodal_projector.builder import build_projector, projector_class
from llava.model.multimodal_projector.norms import kept_statistics
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
    """The decoder's half: owns vision_tower, mm_projector and, with mm_patch_merge_type spatial_unpad,
    image_newline, a learnt embedding float[D]; named as in published checkpoints."""

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
        if module is self and hasattr(self, "image_newline"):
            self._reset_newline()
        super()._init_weights(module)

    def _reset_newline(self) -> None:
        init.normal_(self.image_newline, std=self.config.hidden_size**-0.5)

    def build_vision(self, config) -> None:
        """Tower, projector and newline of the configured shape, with initial weights."""
        kind = projector_class(config.mm_projector_type)
        self.vision_tower = build_vision_tower(config, kind.needs_levels, kind.needs_attention)
        config.mm_hidden_size = self.vision_tower.hidden_size
        config.mm_vision_levels = self.vision_tower.levels
        self.mm_projector = build_projector(config, config.hidden_size)
        if config.mm_patch_merge_type == "spatial_unpad":
            self.image_newline = nn.Parameter(torch.empty(config.hidden_size))
            self._reset_newline()


class LlavaMetaForCausalLM(ImageEncoder):
    """The causal language model's half: images in forward and generate, loss where labels are.

    Attributes:
        decoder_class: of the decoder, which stands where the family's base_model_prefix says (model or
            transformer), as in published checkpoints.
        takes_position_ids: False where positions can only be counted along the row.
        recompute_above: with gradient checkpointing, the positions up to which a training batch keeps its
            activations; 0 recomputes those of every batch.
    """

    decoder_class: type[LlavaMetaModel]
    takes_position_ids = True
    recompute_above = 0

    def __init__(self, config):
        # Past the family's own constructor, which would build a text-only decoder
        PreTrainedModel.__init__(self, config)
        setattr(self, self.base_model_prefix, self.decoder_class(config))
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args, **kwargs) -> str:
        """transformers' own check, ahead of any weight; what is wrong with a name is said in one line."""
        try:
            return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)
        # the last two are of kernels that cannot be fetched from the hub, or are not built for this machine
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
        on_host: OnHost | None = None,
    ) -> MergedInputs:
        """Encode the images and put their tokens into the prompts.

        The plan is made on the CPU: ids that are there, or that on_host holds, cost no wait for the device.

        Args:
            input_ids: long[B, T] with one IMAGE_TOKEN_INDEX for each image.
            attention_mask: bool[B, T], False on padding of either side.
            labels: long[B, T] or None.
            images: flat over the batch, in the order of their placeholders: float[I, 3, H, W], one view each;
                float[I, T, 3, H, W], T tiles each; or a list of float[3, H, W] and float[T, 3, H, W].
            image_sizes: (width, height) of the originals, by which tiles are put together; what square and
                pad need is in the pixels already.
            padding_side: of the result.
            scale_factor: s of this call, by default model.config.scale_factor.
            sequence_ids: long[B, T] of packed rows, as `plan_merge` takes it.
            on_host: the four integer tensors on the CPU, in place of those given.
        Raises:
            UserError: if placeholders and images differ in number, the model has no vision tower, or the
                tiles are not those of image_sizes.
        """
        views, num_views = self._views(images)
        embed = self.get_input_embeddings()
        # the device works on the images while the plan is made
        features = self._image_features(views, embed.weight, scale_factor, labels is not None)
        host = on_host or OnHost.of(input_ids, attention_mask, labels, sequence_ids)
        plan = plan_merge(
            host.input_ids,
            host.attention_mask,
            host.labels,
            self._spans(num_views, image_sizes, scale_factor),
            padding_side,
            host.sequence_ids,
        ).to(embed.weight.device)
        newline = getattr(self.get_model(), "image_newline", None)
        return merge(plan, embed(plan.token_ids), features, newline)

    def _views(self, images: Tensor | list[Tensor] | None) -> tuple[Tensor | None, list[int]]:
        """All views of a batch, float[V, 3, H, W], taken by the tower in one call; each image's number."""
        if images is None or len(images) == 0:
            return None, []
        self.vision_parts()  # refuses images for a text-only model
        if isinstance(images, Tensor) and images.ndim == 4:
            return images, [1] * len(images)
        groups = [image[None] if image.ndim == 3 else image for image in images]
        return torch.cat(groups), [len(group) for group in groups]

    def _spans(self, num_views: list[int], image_sizes, scale_factor: int | None) -> list[ImageSpan]:
        """What each image puts into its prompt, the tokens numbered over the batch."""
        if not num_views:
            return []
        tiling, separators = self.tiling, None
        if self.config.image_aspect_ratio == "slice":
            separators = self.config.slice_separator_ids
            if separators is None:
                raise UserError(
                    "config.slice_separator_ids, the words between slice's tiles, is missing; load the model "
                    "by load_pretrained_model, or call model.initialize_vision_tokenizer(config, tokenizer)."
                )
        if tiling.learns_row_end and not hasattr(self.get_model(), "image_newline"):
            raise UserError(
                "mm_patch_merge_type spatial_unpad needs a learnt image_newline, which this model lacks; set "
                "it where the model is trained, or choose flat or spatial."
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

    def _image_features(
        self, views: Tensor | None, like: Tensor, scale_factor: int | None, has_labels: bool
    ) -> Tensor:
        """float[V * M, D].

        In training and where labels are, a batch without images encodes a blank one and keeps none of its
        tokens, so that every rank takes part in every collective.
        """
        if views is not None:
            return self.encode_images(views, scale_factor).flatten(0, 1)
        if (self.training or has_labels) and (tower := self.get_vision_tower()) is not None:
            side = tower.image_size
            blank = like.new_zeros(1, 3, side, side)
            with kept_statistics(self.get_projector()):
                return self.encode_images(blank, scale_factor).flatten(0, 1)[:0]
        return like.new_zeros(0, self.get_input_embeddings().embedding_dim)

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
        sequence_ids: Tensor | None = None,
        on_host: OnHost | None = None,
        logits_to_keep: int | Tensor = 0,
        sums_tokens: bool = False,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """A causal language model's forward that also takes images, and s, the compression of this call.

        In training with labels, and with sums_tokens, the logits of labelled positions alone are computed,
        and none are returned.

        Args:
            sequence_ids: long[B, T] of packed rows: the running number of a token's sequence in its row, -1
                on padding. No sequence sees another; the first label of each must be IGNORE_INDEX, for the
                token before it is another sequence's.
            on_host: as in merge_inputs.
            logits_to_keep: as in transformers, whose `generate` asks for the last alone if it is named here.
            sums_tokens: the loss is what llava.model.loss.token_sums gives, float64[3].
        """
        scores_labels = labels is not None and (self.training or sums_tokens)
        is_packed = sequence_ids is not None
        label_places = None
        if input_ids is not None and attention_mask is None and past_key_values is None and not is_packed:
            self._warn_of_padding(input_ids if on_host is None else on_host.input_ids)
        if inputs_embeds is None and (images is not None or is_packed or scores_labels):
            side = self.config.tokenizer_padding_side
            merged = self.merge_inputs(
                *(input_ids, attention_mask, labels, images, image_sizes, side, scale_factor),
                *(sequence_ids, on_host),
            )
            if is_packed and is_flash_attention_requested(self.config):
                merged = one_row(merged)
            input_ids, inputs_embeds, labels = None, merged.inputs_embeds, merged.labels
            attention_mask, position_ids = merged.attention_mask, merged.position_ids
            label_places = merged.label_places
            if is_packed:
                # Without a mask and a cache, transformers reads the sequences off positions that restart.
                attention_mask, kwargs["use_cache"] = None, False
            elif not merged.is_padded or ((self.training or scores_labels) and self._padding_is_unseen(side)):
                # transformers would ask the device whether a mask masks anything, and positions restart
                attention_mask = position_ids = None
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        if past_key_values is not None:  # newer transformers calls it cache, and warns of both
            inputs["past_key_values"] = past_key_values
        if scores_labels:
            assert labels is not None
            num_items = kwargs.pop("num_items_in_batch", None)
            kwargs["use_cache"] = False  # nothing is generated from a training step
            # Positions that a caller gives may restart, which transformers reads only where there is no cache
            has_positions = is_packed or position_ids is not None
            if attention_mask is None and self.takes_position_ids and not has_positions:
                inputs["past_key_values"] = KeepsNothing()
            if self.training and self.recompute_above:
                recompute_activations(self.get_decoder(), labels.numel() > self.recompute_above)
            outputs = self.get_decoder()(**inputs, **kwargs)
            if label_places is None:
                label_places = places_before_labels(labels)
            rows = outputs.last_hidden_state.flatten(0, 1)[label_places]
            targets = labels.flatten()[label_places + 1]
            if sums_tokens:
                return CausalLMOutputWithPast(loss=token_sums(rows, targets, self.lm_head))
            loss = language_loss(rows, targets, self.lm_head, self.config, num_items)
            return CausalLMOutputWithPast(loss=loss)
        return super().forward(**inputs, labels=labels, logits_to_keep=logits_to_keep, **kwargs)

    def _padding_is_unseen(self, padding_side: str) -> bool:
        """Whether no mask is needed though rows are padded: on the right, where a causal model's words do not
        look and training reads no outcome. Attention then runs its causal kernel instead of one with a mask;
        flash attention's own skips what a mask hides, and keeps it."""
        by_torch = self.config._attn_implementation in ("sdpa", "eager")
        return by_torch and self.takes_position_ids and padding_side == "right"

    def _warn_of_padding(self, input_ids: Tensor, pad_token_id: int | None = None) -> None:
        own = (pad_token_id, self.generation_config.pad_token_id, self.config.pad_token_id)
        warn_of_padding(input_ids, own, words=(self.config.bos_token_id, self.config.eos_token_id))

    def save_pretrained(self, *args, **kwargs) -> None:
        """transformers' own, which refuses settings of sampling without do_sample, as Vicuna's
        generation_config.json has them. They have no effect and are left out."""
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
            inputs: long[B, T] with one IMAGE_TOKEN_INDEX for each image; input_ids is taken too.
            images, image_sizes, attention_mask, scale_factor: as merge_inputs.
            repetition_penalty: counts the words of the prompt too.
        Returns:
            long[B, new], or what transformers returns for return_dict_in_generate.
        """
        input_ids = kwargs.pop("input_ids", inputs)
        if kwargs.get("inputs_embeds") is None:
            if input_ids is None:
                raise UserError("generate needs input_ids or inputs_embeds; both are missing.")
            kwargs.pop("inputs_embeds", None)
            kwargs.pop("position_ids", None)  # of the prompt before its images were merged in
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
                kwargs["repetition_penalty"] = 1.0  # transformers' own would penalise the answer twice
        return super().generate(**kwargs)

    def initialize_vision_tokenizer(self, fields, tokenizer) -> None:
        """Add the tokens of --mm_use_im_patch_token and --mm_use_im_start_end, whose rows start at the mean;
        and note the words that stand between tiles."""
        if self.config.slice_separator_ids is None:
            self.config.slice_separator_ids = separator_ids(tokenizer)
        tokens = [DEFAULT_IMAGE_PATCH_TOKEN] if fields.mm_use_im_patch_token else []
        tokens += [DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN] if fields.mm_use_im_start_end else []
        if tokens:
            add_words(self, tokenizer, tokens)
