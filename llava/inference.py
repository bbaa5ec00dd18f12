"""Declares the flags of all commands that run a model, and loads the model that they ask for.

torch is imported only where it is used, so that --help does not need it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llava.command import add_declared, positive
from llava.conversation import DEFAULT_TEMPLATE, Conversation, template_named, template_of
from llava.errors import UserError
from llava.loading import DTYPES, FLASH_PACKAGES, check_installed

if TYPE_CHECKING:
    from llava.model.plan import CheckpointPlan

AUTO = "auto"

# In the form that add_declared takes. --help shows a default that is not None.
FLAGS: dict[str, dict] = {
    "model_path": {
        "required": True,
        "help": "folder or hub name of a model; with --model-base, also of a projector or of LoRA adapters",
    },
    "model_base": {
        "help": "folder or hub name of the language model to which the projector or adapters of --model-path "
        "belong; default: the one that the adapters name",
    },
    "model_name": {"help": "the model's name in requests and answers; default: the name of its folder"},
    "conv_mode": {
        "help": f"conversation template; default: config.json's conv_version, or {DEFAULT_TEMPLATE}",
    },
    "device": {"help": "cuda, cuda:N, mps or cpu; default: the first of cuda, mps and cpu that is available"},
    "load_4bit": {"action": "store_true", "help": "load the language model in 4 bits with bitsandbytes"},
    "load_8bit": {"action": "store_true", "help": "load the language model in 8 bits with bitsandbytes"},
    "dtype": {
        "choices": (AUTO, *DTYPES),
        "default": AUTO,
        "help": "type of weights and arithmetic; auto is fp32 on a CPU and the checkpoint's own type on a "
        "GPU, except that bf16 replaces fp32, and fp16 replaces bf16 if the GPU has no bf16",
    },
    "attn_implementation": {
        "default": AUTO,
        "metavar": "NAME",
        "help": "the language model's attention: sdpa, eager, flash_attention_2, flash_attention_3 or "
        "another name that transformers knows; auto is transformers' choice",
    },
    "compile": {
        "action": "store_true",
        "help": "compile the vision tower with the projector, and the decoding; the first answers, and later "
        "ones with another batch size or longer prompts, wait for the compiler",
    },
    "scale_factor": {
        "type": positive,
        "help": "side of the square of patches that becomes one visual token; default: the model's own",
    },
    "image_aspect_ratio": {"help": "square, pad, slice or anyres; default: the model's own"},
    "image_folder": {"default": "", "help": "folder to which the questions' image paths are relative"},
    "temperature": {
        "type": float,
        "default": 0.0,
        "help": "0 chooses the likeliest token; above 0, tokens are drawn at random",
    },
    "top_p": {
        "type": float,
        "help": "draw only from the likeliest tokens whose probabilities add up to this; needs --temperature",
    },
    "num_beams": {"type": positive, "default": 1, "help": "number of beams; 1 is no beam search"},
    "max_new_tokens": {"type": positive, "default": 512, "help": "greatest length of an answer in tokens"},
    "batch_size": {"type": positive, "help": "questions in a batch; default: as many as fit --token_budget"},
    "token_budget": {
        "type": positive,
        "default": 16384,  # 8 GB of keys and values for a 7B model in half precision
        "help": "tokens in a batch, counted with padding, visual tokens, answers and all beams",
    },
    "on_bad_record": {
        "choices": ("fail", "skip"),
        "default": "fail",
        "help": "fail stops; skip leaves out questions that cannot be asked, and lists them at the end",
    },
}
LOADING = ("--device", "--load-4bit", "--load-8bit", "--dtype", "--attn_implementation")
OVERRIDES = ("--scale_factor", "--image_aspect_ratio")  # flags that override config.json
MODEL = ("--model-path", "--model-base", "--conv-mode", *LOADING, "--compile", *OVERRIDES)
SAMPLING = ("--temperature", "--top_p")


def add_flags(parser, *flags: str, **defaults) -> None:
    """Let a command take some of FLAGS, as add_declared does."""
    add_declared(parser, FLAGS, flags, defaults)


@dataclass(frozen=True)
class LoadedModel:
    """A model with everything that is needed to ask it questions.

    Attributes:
        tokenizer: pads on the left.
        model: the model in eval mode.
        image_processor: makes pixel values for the vision tower; None for a text-only model.
        context_length: the most positions that a sequence may have.
        template: the template of prompts.
        compiled: whether answers are to be decoded by compiled graphs (see Decoding).
    """

    tokenizer: Any
    model: Any
    image_processor: Any
    context_length: int
    template: Conversation
    compiled: bool = False


def load_model(
    model_path: str | CheckpointPlan,
    model_base: str | None = None,
    *,
    device: str | None = None,
    conv_mode: str | None = None,
    scale_factor: int | None = None,
    image_aspect_ratio: str | None = None,
    **loading,
) -> LoadedModel:
    """Load a model to ask it questions.

    Args:
        model_path, model_base: as load_pretrained_model takes them.
        device: "cuda", "cuda:N", "mps" or "cpu"; by default the first of these that is here.
        conv_mode: template name; None: the config's conv_version, else DEFAULT_TEMPLATE.
        scale_factor, image_aspect_ratio: in place of the model's own.
        loading: further options of load_pretrained_model. With compile_vision the decoding is compiled, too.
    Raises:
        UserError: for what the user can correct; says how.
    """
    from llava.model.builder import load_pretrained_model
    from llava.tiling import ASPECT_RATIOS, check_choice

    # these checks come before loading, which takes long
    if conv_mode:
        template_named(conv_mode)
    if image_aspect_ratio is not None:
        check_choice("image_aspect_ratio", image_aspect_ratio, ASPECT_RATIOS)
    if device is not None:
        check_device(device)
    tokenizer, model, image_processor, context_length = load_pretrained_model(
        model_path, model_base, device=device, **loading
    )
    if image_aspect_ratio is not None:
        model.config.image_aspect_ratio = image_aspect_ratio
    if scale_factor is not None:
        model.set_scale_factor(scale_factor)
    template = template_of(model.config, conv_mode)
    compiled = loading.get("compile_vision", False)
    return LoadedModel(tokenizer, model, image_processor, context_length, template, compiled)


def load_by_flags(args: argparse.Namespace) -> LoadedModel:
    """The model that a command line asks for; flags that `args` lacks have their defaults."""
    names = ("model_base", "device", "conv_mode", "scale_factor", "image_aspect_ratio")
    given = {name: getattr(args, name, None) for name in names}
    return load_model(args.model_path, **given, **loading_options(args))


def loading_options(args: argparse.Namespace) -> dict:
    """Arguments for load_pretrained_model from the flags; flags that `args` lacks have their defaults.

    Raises UserError if an attention implementation is not installed, or cannot compute in the dtype, or if
    two flags contradict each other.
    """
    import torch

    dtype, attention = getattr(args, "dtype", AUTO), getattr(args, "attn_implementation", AUTO)
    bits = {name: getattr(args, name, False) for name in ("load_4bit", "load_8bit")}
    if all(bits.values()):
        raise UserError("--load-4bit and --load-8bit exclude each other; give one.")
    if attention in FLASH_PACKAGES:
        check_installed(attention)
        if dtype == "fp32":
            raise UserError(
                f"--attn_implementation {attention} computes in half precision, but --dtype is fp32; pass "
                "--dtype bf16 or fp16, or --attn_implementation sdpa."
            )
    return {
        "torch_dtype": None if dtype == AUTO else getattr(torch, DTYPES[dtype]),
        "attn_implementation": None if attention == AUTO else attention,
        "compile_vision": getattr(args, "compile", False),
        **bits,
    }


def check_device(device: str) -> None:
    """Raises UserError if torch has no such device here."""
    import torch

    try:
        torch.empty(0, device=device)
    # a build without CUDA raises AssertionError
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device {device} is not available ({str(error).splitlines()[0]}); "
            "choose cpu, cuda, cuda:N or mps."
        ) from error
