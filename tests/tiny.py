"""Tiny random models, towers and tokenizers that tests build, save and load in well under a second each."""

# 56 px and patches of 14 px: a 4x4 grid

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from llava.model.builder import attach_vision
from llava.model.language_model.builder import read_config, type_of
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.multimodal_projector.builder import VisionFields

TRANSFORMER = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
VOCABULARY = 600


def clip(**changes) -> CLIPVisionModel:
    return CLIPVisionModel(
        CLIPVisionConfig(
            **{**TRANSFORMER, "num_hidden_layers": 6, "image_size": 56, "patch_size": 14, **changes}
        )
    ).eval()


def siglip() -> SiglipVisionModel:
    config = SiglipVisionConfig(
        **TRANSFORMER, num_hidden_layers=6, image_size=56, patch_size=14, vision_use_head=False
    )
    return SiglipVisionModel(config).eval()


def siglip2() -> Siglip2VisionModel:
    config = Siglip2VisionConfig(
        **TRANSFORMER, num_hidden_layers=6, num_patches=16, patch_size=14, vision_use_head=False
    )
    return Siglip2VisionModel(config).eval()


def dinov2() -> Dinov2Model:
    config = Dinov2Config(
        hidden_size=32, num_attention_heads=2, mlp_ratio=2, num_hidden_layers=6, image_size=56, patch_size=14
    )
    return Dinov2Model(config).eval()


TOWERS = {"clip": clip, "siglip": siglip, "siglip2": siglip2, "dinov2": dinov2}

DECODER = {**TRANSFORMER, "num_hidden_layers": 2, "num_key_value_heads": 1, "vocab_size": VOCABULARY}
MPT_DECODER = {"d_model": 32, "n_heads": 2, "n_layers": 2, "vocab_size": VOCABULARY}
# Each function takes changes of its configuration
LANGUAGE_MODELS = {
    "llama": lambda **changes: LlamaForCausalLM(LlamaConfig(**{**DECODER, **changes})),
    "mistral": lambda **changes: MistralForCausalLM(MistralConfig(**{**DECODER, **changes})),
    "qwen2": lambda **changes: Qwen2ForCausalLM(Qwen2Config(**{**DECODER, **changes})),
    "qwen3": lambda **changes: Qwen3ForCausalLM(Qwen3Config(**{**DECODER, "head_dim": 16, **changes})),
    "mpt": lambda **changes: MptForCausalLM(MptConfig(**{**MPT_DECODER, **changes})),
}


# How Llama 3 and Qwen2 split text into words. Line ends stay together, unlike in GPT-2's rule of ByteLevel
LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def byte_level_tokenizer(
    sentences: Iterable[str],
    special_tokens: list[str],
    vocab_size: int = 500,
    words: str | None = None,
    adds_bos: bool = False,
    **roles,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained on those sentences.

        Args:
    words: regular expression for the words that are tokenised one by one; None: GPT-2's.
    adds_bos: whether it puts the BOS before a text.
    roles: the special tokens by role: bos_token, eos_token, pad_token, ...
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if words is not None:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(words), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*sentences] * 4, trainer)
    if adds_bos:
        bos = roles["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **roles)


def image_processor(side: int = 56) -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def save_tower(folder, family: str = "clip"):
    """Writes a tower's folder with its image processor; returns the folder as a string."""
    TOWERS[family]().save_pretrained(folder)
    image_processor().save_pretrained(folder)
    return str(folder)


def save_language_model(folder, family: str = "llama", **changes):
    LANGUAGE_MODELS[family](**changes).save_pretrained(folder)
    return str(folder)


def build(
    folder,
    family: str = "llama",
    tower: str = "clip",
    vocab_size: int = VOCABULARY,
    decoder: dict | None = None,
    **fields,
):
    """A multimodal model in eval mode, from new parts below `folder`; by default visualprism with s = 2.

        Args:
    decoder: changes to the language model's configuration.
    """
    torch.manual_seed(0)
    changes = {"vocab_size": vocab_size, **(decoder or {})}
    language_model = save_language_model(folder / "language_model", family, **changes)
    config = read_config(language_model)
    model = type_of(config).from_pretrained(language_model, config=config)
    vision_tower = save_tower(folder / "tower", tower)
    fields = {"mm_projector_type": "visualprism", **fields}
    attach_vision(model, VisionFields(mm_vision_tower=vision_tower, **fields))
    return model.eval()


def assert_same(model, other, logits) -> None:
    """Compares weights and buffers bit by bit, and the results of `logits` up to rounding.

    Weights read from a file lie at other alignments in memory, where a processor may sum in another order.
    """
    for named in ("named_parameters", "named_buffers"):
        left, right = (dict(getattr(one, named)()) for one in (model, other))
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert torch.equal(value, right[name]), name
    torch.testing.assert_close(logits(model), logits(other), atol=1e-5, rtol=1e-5)


LLAVA_SIZE, LLAVA_PATCH_SIZE = 48, 8  # for save_llava: a 6x6 grid, 9 visual tokens


def save_llava(folder: Path, seed: int = 0, **config) -> Path:
    """Writes a whole model's folder with tokenizer and image processor; its answers depend on the image.

    Args:
        config: overrides keys of config.json.
    """
    end_marks = ["<|im_start|>", "<|im_end|>"]
    tokenizer = byte_level_tokenizer(
        ["what colour is the red circle? the answer is a blue triangle."],
        ["<unk>", "<s>", "</s>", *end_marks],
        vocab_size=320,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        additional_special_tokens=end_marks,
    )
    tower = clip(hidden_size=16, intermediate_size=32, image_size=LLAVA_SIZE, patch_size=LLAVA_PATCH_SIZE)
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.3,  # large, so that answers differ from one another
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "mm_vision_tower": "tiny",
        "mm_vision_config": tower.config.to_dict(),
        "mm_projector_type": "visualprism",
        "scale_factor": 2,
        "image_aspect_ratio": "square",
    }
    torch.manual_seed(seed)
    model = LlavaLlamaForCausalLM(LlavaConfig(**{**settings, **config}))
    with torch.no_grad():
        if hasattr(model.get_projector(), "mlp"):
            model.get_projector().mlp[-1].weight.mul_(
                2000
            )  # visual tokens then have norms like those of words
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor(LLAVA_SIZE).save_pretrained(folder)
    return folder


def look_at_white(model, tokenizer) -> None:
    """Make a save_llava model always answer "a", with attention from text only to white visual tokens.

    The embedding of text is (0, c, 0, ...). White tokens must be (c, 0, ...), and black ones (0, 0, c, ...),
    as colour_tokens makes them. Queries use the second channel and keys the first, at the frequency at which
    the rotary embedding rotates least. A small part of the white tokens' values goes into the fourth channel,
    which raises the logit of "a" too.
    """
    decoder = model.get_decoder()
    head_width = decoder.layers[0].self_attn.head_dim
    slowest = head_width // 2 - 1
    with torch.no_grad():
        for layer in decoder.layers:
            attention = layer.self_attn
            for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
                part.weight.zero_()
            attention.q_proj.weight[slowest::head_width, 1] = 3
            attention.k_proj.weight[slowest::head_width, 0] = 3
            attention.v_proj.weight[::head_width, 0] = 1
            attention.o_proj.weight[3, ::head_width] = 0.01
            layer.mlp.down_proj.weight.zero_()
            layer.input_layernorm.weight.fill_(1)
        decoder.embed_tokens.weight.zero_()
        decoder.embed_tokens.weight[:, 1] = 1
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer.convert_tokens_to_ids("a"), 1] = 1
        model.lm_head.weight[tokenizer.convert_tokens_to_ids("a"), 3] = 1


def colour_tokens(is_white: torch.Tensor) -> torch.Tensor:
    """bool[V, M] to the features float[V, M, 32] that look_at_white tells apart."""
    white = is_white.float()
    return torch.nn.functional.pad(torch.stack([white, 0 * white, 1 - white], dim=-1), (0, 29))
