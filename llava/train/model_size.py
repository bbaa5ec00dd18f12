"""Counts the memory that a run's model needs for each weight, position and view, without allocating weights.

The model that the flags describe is built on the meta device, once with one and once with two decoder layers;
each further layer needs as much as the second. Tensors that the forward pass keeps for the backward pass are
counted when autograd saves them.
"""

# B sequences, T positions, D model width

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.utils.hub import cached_file

from llava.errors import UserError
from llava.model.files import first_line
from llava.model.language_model.builder import read_config, type_of
from llava.model.multimodal_projector.builder import copy_fields
from llava.model.training_cache import KeepsNothing
from llava.train import trainable
from llava.train.arguments import choose_template, vision_fields
from llava.train.flags import DataArguments, ModelArguments, TrainingFlags, flag
from llava.train.lora import add_adapters
from llava.train.trainable import LANGUAGE_MODEL, part_of

COUNTED = "counted"  # name of an attention that keeps the same tensors as a fused kernel
NUM_SEQUENCES = 64  # in the counted batch: so many that tensors kept once a batch do not matter
NF4_BITS = 4.13  # bits a weight with double quantisation (Dettmers et al. 2023, "QLoRA", section 3)


@dataclass
class RunArguments(TrainingFlags):
    """Our training flags, and those of transformers that affect memory, without its checks of the machine."""

    per_device_train_batch_size: int = flag(8, "Sequences per device in a forward pass.")
    gradient_accumulation_steps: int = flag(1, "Forward passes per optimiser step.")
    bf16: bool = flag(False, "bfloat16.")
    fp16: bool = flag(False, "float16.")
    deepspeed: str = flag("auto", "A DeepSpeed configuration, none, or auto.")
    gradient_checkpointing: str = flag("auto", "True, False, or auto.")
    use_liger_kernel: bool = flag(False, "Use Liger's fused kernels.")
    world_size: int = field(default=1, init=False)  # a norm over ranks is counted like one on a single rank


@dataclass(frozen=True)
class ModelSize:
    """The size of a model. Values are bytes, except those that start with "the number".

    Attributes:
        learning: the number of trainable parameters.
        weight: one trainable parameter, or its gradient, if DeepSpeed holds them.
        frozen: all weights that are not trained.
        position: the tensors that one position keeps for the backward pass, over all decoder layers.
        layer_position: the same for one layer.
        hidden: the hidden state of one position; with recomputation, a layer keeps only this.
        view: the tensors that one view keeps in the projector, and in the tower if that is trained.
        head_gradient: the gradient of the head's weight, which is made with the loss.
        layers: the number of decoder layers.
        vocabulary: the number of tokens in the vocabulary.
        tokens: the number of visual tokens a view.
        views: the number of views that an image has at most.
    """

    learning: int
    weight: int
    frozen: int
    position: int
    layer_position: int
    hidden: int
    view: int
    head_gradient: int
    layers: int
    vocabulary: int
    tokens: int
    views: int


def size_of(model_args: ModelArguments, data_args: DataArguments, run_args: RunArguments) -> ModelSize:
    """The size of the model that these flags train.

    Raises:
        UserError: if a configuration cannot be read, or the flags contradict it.
    """
    config = configured(model_args, data_args, run_args)
    layers = config.num_hidden_layers
    one, two = (_count(config, depth, model_args, run_args) for depth in (1, 2))
    pairs = ((item.name, getattr(one, item.name), getattr(two, item.name)) for item in fields(ModelSize))
    whole = {name: first + (layers - 1) * (second - first) for name, first, second in pairs}
    return ModelSize(**{**whole, "layer_position": two.position - one.position})


def configured(model_args, data_args, run_args: RunArguments) -> PretrainedConfig:
    """The configuration of the model that train_mem.py would train; only config.json files are read."""
    name = model_args.model_name_or_path
    try:
        file = cached_file(name, "config.json", cache_dir=run_args.cache_dir)
    except OSError as error:
        raise UserError(f"--model_name_or_path {name!r} has no config.json ({first_line(error)}).") from error
    config = read_config(Path(file).parent)
    own = config if config.mm_vision_tower is not None else None
    if own is None and not model_args.vision_tower:
        raise UserError("--vision_tower is missing: give a folder or a hub name.")
    template = choose_template(model_args.version, {name: getattr(own, "conv_version", None)})
    copy_fields(config, vision_fields(model_args, data_args, run_args, own, template))  # type: ignore[arg-type]
    return config


def _count(config, depth: int, model_args: ModelArguments, run_args: RunArguments) -> ModelSize:
    """The size of the same model with `depth` decoder layers; layer_position is left 0."""
    config = type(config).from_dict(config.to_dict())
    config.num_hidden_layers = depth
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:depth]
    dtype, autocast = trainable.compute_dtype(run_args), run_args.deepspeed == "none"  # type: ignore[arg-type]
    with torch.device("meta"):
        model = type_of(config)(config).to(dtype)
        if run_args.lora_enable:
            add_adapters(model, run_args, "")  # type: ignore[arg-type]
        trainable.set_trainable(model, trainable.learning_parts(model_args, run_args), run_args.lora_enable)  # type: ignore[arg-type]
        if autocast:
            trainable.set_dtypes(model, dtype)
        else:
            model.to(dtype)  # as DeepSpeed does
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = _frozen_bytes(model, run_args.bits)
    head = model.get_output_embeddings().weight
    tower, projector = model.vision_parts()
    budgets = config.elastic_scale_factors or [None]
    tokens = max(model.tokens_per_view(scale_factor) for scale_factor in budgets)
    scale_factor = min(config.elastic_scale_factors or [config.scale_factor])
    length = min(run_args.model_max_length, config.max_position_embeddings)
    if run_args.attn_implementation != "eager" and model._supports_sdpa:
        config._attn_implementation = COUNTED
    _as_on_gpus(model, run_args.use_liger_kernel)
    model.train()
    with FakeTensorMode(), torch.autocast("cpu", dtype, enabled=autocast and dtype != torch.float32):
        _make_fake(model)
        embeddings = model.get_input_embeddings().weight
        hidden = torch.empty(NUM_SEQUENCES, length, config.hidden_size, dtype=embeddings.dtype)
        kept = saved_bytes(
            lambda: model.get_decoder()(
                inputs_embeds=hidden.requires_grad_(), use_cache=False, past_key_values=KeepsNothing()
            ),
            model,
        )
        view = 0
        if any(p.requires_grad for part in (tower, projector) for p in part.parameters()):
            pixels = torch.empty(1, 3, tower.image_size, tower.image_size, dtype=tower.dtype)
            budget = scale_factor if projector.compresses else None
            view = saved_bytes(lambda: model.encode_images(pixels, budget), model)
    return ModelSize(
        learning=learning,
        weight=dtype.itemsize,
        frozen=round(frozen),
        position=kept // (NUM_SEQUENCES * length),
        layer_position=0,
        hidden=config.hidden_size * hidden.element_size(),
        view=view,
        head_gradient=head.numel() * head.element_size() if head.requires_grad else 0,
        layers=depth,
        vocabulary=config.vocab_size,
        tokens=tokens,
        views=model.tiling.max_tiles,
    )


def _frozen_bytes(model: nn.Module, bits: int) -> float:
    """Bytes of frozen weights. Quantisation packs the language model's linear maps, except its head."""
    packed = {
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and part_of(name) == LANGUAGE_MODEL and bits < 16
    } - {id(model.get_output_embeddings().weight)}
    packed_bytes = (NF4_BITS if bits == 4 else bits) / 8
    return sum(
        p.numel() * (packed_bytes if id(p) in packed else p.element_size())
        for p in model.parameters()
        if not p.requires_grad
    )


def _make_fake(model: nn.Module) -> None:
    """Replace meta tensors, which autocast ignores, by CPU tensors without memory."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    is_weight = isinstance(tensor, nn.Parameter)
                    tensors[name] = nn.Parameter(fake, tensor.requires_grad) if is_weight else fake


def saved_bytes(forward: Callable[[], object], model: nn.Module) -> int:
    """Bytes that a forward pass keeps for its backward pass: each storage once, without the model's own."""
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for key, storage in kept.items() if key not in own)


class _Kernel(torch.autograd.Function):
    """Imitates a GPU kernel: it returns `output` for its inputs, and keeps the tensors `kept`."""

    @staticmethod
    def forward(ctx, kept: list[Tensor], output: Tensor, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*kept)
        return output


def _attend(module, query: Tensor, key: Tensor, value: Tensor, attention_mask, **kwargs):
    output = query.new_empty(query.transpose(1, 2).shape)
    return _Kernel.apply([query, key, value, output], output, query, key, value), None


AttentionInterface.register(COUNTED, _attend)
AttentionMaskInterface.register(COUNTED, lambda *args, **kwargs: None)


def _as_on_gpus(model: nn.Module, liger: bool) -> None:
    """Have modules keep the tensors that their GPU kernels keep, if CPU kernels keep other ones."""
    for module in model.modules():
        if isinstance(module, nn.Dropout) and module.p:
            module.forward = _drop
        elif liger and type(module).__name__.endswith("RMSNorm"):
            module.forward = _norm
        elif liger and hasattr(module, "gate_proj"):
            module.forward = partial(_gated, module)


def _drop(hidden: Tensor) -> Tensor:
    return _Kernel.apply([torch.empty_like(hidden, dtype=torch.bool)], torch.empty_like(hidden), hidden)


def _norm(hidden: Tensor) -> Tensor:
    return _Kernel.apply([hidden], torch.empty_like(hidden), hidden)


def _gated(mlp: nn.Module, hidden: Tensor) -> Tensor:
    gate, up = mlp.gate_proj(hidden), mlp.up_proj(hidden)
    return mlp.down_proj(_Kernel.apply([gate, up], torch.empty_like(up), gate, up))
