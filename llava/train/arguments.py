"""Every flag of train_mem.py: units, defaults, and the contradictions that end a run before it starts."""

import importlib.util
from dataclasses import dataclass, field

import torch
import transformers

from llava.data.shards import is_shards
from llava.model.vision_config import VisionFields
from llava.tiling import ASPECT_RATIOS, PATCH_MERGE_TYPES, PATCH_NUMS, check_choice

DEFAULT_TEMPLATE = "v1"
ATTENTIONS = ("auto", "sdpa", "flash_attention_2", "eager")
REPORTERS = ("tensorboard", "wandb")


def flag(default, help_text: str, **metadata):
    return field(default=default, metadata={"help": help_text, **metadata})


# What shapes the model is None where it is not given: a multimodal checkpoint then keeps its own, a plain
# language model gets VisionFields' defaults.
@dataclass
class ModelArguments:
    model_name_or_path: str = flag(
        None, "Language model, or a multimodal checkpoint to go on from: a folder or a hub name."
    )
    version: str = flag(
        None,
        "Conversation template: plain for stage 1, v1 for Vicuna (default), qwen_2 for ChatML, ...; a "
        "multimodal checkpoint keeps its own.",
    )
    vision_tower: str = flag(None, "Vision tower: a folder or a hub name of a CLIP, SigLIP or DINOv2 model.")
    mm_vision_select_layer: int = flag(
        None, "Hidden state for the projector; 0 is the embedding output, -1 the last; default -2."
    )
    mm_vision_select_feature: str = flag(None, "patch (default), or cls_patch to keep the class token.")
    mm_vision_levels: list[int] = field(
        default=None,
        metadata={
            "help": "Hidden states for multi-level projectors, ascending; default 12 16 22 23 of 24, scaled."
        },
    )
    mm_vision_image_size: int = flag(None, "Side of the tower's input in pixels; default the tower's own.")
    mm_projector_type: str = flag(
        None,
        "linear (default), identity, mlpNx_gelu, visualprism, visualprism_v2, tokenpacker, avgpool, "
        "pixel_shuffle, resampler, cabstractor, ldpv2, visionzip or prumerge.",
    )
    scale_factor: int = flag(None, "s: a compressing projector gives N / s**2 tokens; default 2.")
    num_visual_tokens: int = flag(None, "Tokens an image keeps under visionzip and prumerge.")
    elastic_scale_factors: list[int] = field(
        default=None,
        metadata={"help": "Draw s from these at each step, so that one checkpoint serves them all."},
    )
    visualprism_paths: str = flag(
        None, "Paths of VisualPrism's queries, any of identity,local,wavelet; default all three."
    )
    visualprism_tpqp: bool = flag(
        None, "Triple-path queries (default True); False is the identity path alone."
    )
    visualprism_hkve: bool = flag(
        None,
        "Hierarchical keys and values (default True); False is TokenPacker's two-layer maps, in "
        "visualprism_v2 no branches.",
    )
    visualprism_wavelet: str = flag(
        None, "A discrete wavelet of PyWavelets: haar (default), db2, bior2.2, ..."
    )
    visualprism_norm: str = flag(
        None, "batch (default), sync_batch (what several ranks get for batch) or layer; of visualprism alone."
    )
    visualprism_level_norm: bool = flag(
        None, "Every level is normed as it enters (default True); of visualprism_v2 alone."
    )
    visualprism_positions: bool = flag(
        None, "Values carry their place in the region (default True); of visualprism_v2 alone."
    )
    visualprism_shortcut: bool = flag(
        None, "The query is added to what it gathered (default False); of visualprism_v2 alone."
    )
    pretrain_mm_mlp_adapter: str = flag(None, "Stage 1's mm_projector.bin to start from.")
    tune_mm_mlp_adapter: bool = flag(False, "Stage 1: the projector alone learns.")
    freeze_backbone: bool = flag(False, "The language model does not learn.")
    unfreeze_mm_vision_tower: bool = flag(False, "The vision tower learns too.")
    mm_use_im_start_end: bool = flag(None, "Wrap each image in <im_start> and <im_end>.")
    mm_use_im_patch_token: bool = flag(None, "Add <im_patch> to the vocabulary.")
    mm_patch_merge_type: str = flag(
        None, "How the tiles of anyres are joined: flat (default), spatial or spatial_unpad."
    )

    def __post_init__(self):
        if not self.model_name_or_path:
            raise ValueError("--model_name_or_path is missing: give a folder or a hub name.")
        if self.mm_patch_merge_type is not None:
            check_choice("mm_patch_merge_type", self.mm_patch_merge_type, PATCH_MERGE_TYPES)
        if self.tune_mm_mlp_adapter and self.unfreeze_mm_vision_tower:
            raise ValueError(
                "--unfreeze_mm_vision_tower trains the tower, and --tune_mm_mlp_adapter saves the projector "
                "alone: the tower would be lost. Train it in stage 2."
            )


@dataclass
class DataArguments:
    data_path: list[str] = field(
        default=None,
        metadata={
            "help": "LLaVA records: JSON or JSONL files, or WebDataset shards, 'shards/{000..127}.tar'."
        },
    )
    data_weights: list[float] = field(
        default=None,
        metadata={"help": "Passes over each --data_path in an epoch: 0.5 is a random half; default 1 each."},
    )
    packing: bool = flag(
        False, "Fill sequences of --model_max_length with several records, none of which sees another."
    )
    image_folder: str = flag(None, "Folder that the records' image paths start from.")
    image_aspect_ratio: str = flag(
        None,
        "square (resize and crop, the default), pad (to a square of the mean colour), slice (tiles of the "
        "tower's size and a thumbnail) or anyres (LLaVA-1.6's).",
    )
    is_multimodal: bool = flag(True, "Records may have images; False is refused.")
    lazy_preprocess: bool = flag(True, "Records are prepared as they are needed; False is refused.")
    image_grid_pinpoints: str = flag(
        None,
        "Resolutions of anyres, as a list of [width, height], or grids of tiles, '(1x1),...,(6x6)'; default "
        "LLaVA-1.6's 1x2, 2x1, 2x2, 3x1 and 1x3.",
    )
    patch_num: int = flag(None, "Tiles at most of slice: 9 (default), 16 or 25.")
    on_bad_record: str = flag(
        "fail", "fail, or skip to leave bad records out, count them and list them at the end."
    )

    def __post_init__(self):
        if not self.data_path:
            raise ValueError("--data_path is missing: give a JSON or JSONL file of LLaVA records.")
        if not self.is_multimodal:
            raise ValueError(
                "--is_multimodal False is refused: each record says whether it has images; leave it out."
            )
        if not self.lazy_preprocess:
            raise ValueError(
                "--lazy_preprocess False is refused: records are prepared as they are needed, so that memory "
                "does not grow with the set; leave it out."
            )
        if self.data_weights is not None and len(self.data_weights) != len(self.data_path):
            raise ValueError(
                f"--data_weights needs one number for each --data_path, got {len(self.data_weights)} for "
                f"{len(self.data_path)}."
            )
        if any(weight <= 0 for weight in self.data_weights or ()):
            raise ValueError(f"--data_weights must be above 0, got {self.data_weights}; leave the file out.")
        if self.image_aspect_ratio is not None:
            check_choice("image_aspect_ratio", self.image_aspect_ratio, ASPECT_RATIOS)
        if self.patch_num is not None:
            check_choice("patch_num", self.patch_num, PATCH_NUMS)
        if self.on_bad_record not in ("fail", "skip"):
            raise ValueError(f"--on_bad_record must be fail or skip, got {self.on_bad_record!r}.")


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    model_max_length: int = flag(2048, "Tokens a sequence, image tokens included; longer ones are cut.")
    freeze_mm_mlp_adapter: bool = flag(False, "The projector does not learn.")
    mm_projector_lr: float = flag(None, "Learning rate of the projector; default --learning_rate.")
    mm_vision_tower_lr: float = flag(None, "Learning rate of a tower that learns; default --learning_rate.")
    max_nan_steps: int = flag(
        3, "Steps in a row without a finite loss after which the run ends, naming their records."
    )
    group_by_modality_length: bool = flag(False, "Batches of one modality and similar length.")
    attn_implementation: str = flag("auto", "auto, sdpa, flash_attention_2 or eager.")
    cache_dir: str = flag(None, "Where the hub's files are kept.")
    remove_unused_columns: bool = flag(False, "The collator already gives what the model takes.")

    lora_enable: bool = flag(False, "Train low-rank adapters of the language model.")
    lora_r: int = flag(64, "Rank of the adapters.")
    lora_alpha: int = flag(16, "Scale of the adapters.")
    lora_dropout: float = flag(0.05, "Dropout on the adapters' input.")
    lora_weight_path: str = flag("", "Adapters to start from.")
    lora_bias: str = flag("none", "Which biases learn with the adapters: none, all or lora_only.")
    bits: int = flag(16, "Bits of the language model's weights: 16, 8 or 4.")
    double_quant: bool = flag(True, "Quantise the quantisation constants too.")
    quant_type: str = flag("nf4", "4-bit type: nf4 or fp4.")

    use_sinkhorn_lsd: bool = flag(False, "Add the Sinkhorn regulariser to the loss.")
    no_use_sinkhorn_lsd: bool = flag(False, "Do not; as published scripts say it.")
    sinkhorn_alpha_ce: float = flag(1.0, "Weight of cross-entropy beside the regulariser.")
    sinkhorn_beta: float = flag(0.6, "Weight of the regulariser.")
    sinkhorn_tau_sd: float = flag(2.2, "Temperature of its softmax.")
    sinkhorn_lambda: float = flag(0.12, "Entropy of its transport plan.")
    sinkhorn_iters: int = flag(16, "Rounds of normalisation.")
    sinkhorn_max_tokens: int = flag(768, "Labelled positions at most; more are sampled.")

    # Flags of published scripts that transformers 5 renamed
    evaluation_strategy: str = flag(None, "Older name of --eval_strategy.")
    warmup_ratio: float = flag(
        None, "Share of the steps to warm up over; older form of --warmup_steps below 1."
    )

    def __post_init__(self):
        if self.evaluation_strategy is not None:
            self.eval_strategy = self.evaluation_strategy
        if self.warmup_ratio is not None:
            if self.warmup_steps:
                raise ValueError("--warmup_ratio and --warmup_steps are two ways to say one thing; give one.")
            self.warmup_steps = self.warmup_ratio  # a value below 1 is a share
        self._check_choices()
        if not torch.cuda.is_available() and not torch.backends.mps.is_available():
            self.use_cpu = True  # without it the world size of several CPU processes reads 1
            self.tf32 = None
            self.dataloader_pin_memory = False
            if self.fp16:
                raise ValueError(
                    "--fp16: a CPU trains in --bf16 or float32; its losses scale on a GPU alone."
                )
        super().__post_init__()
        for name in self.report_to:
            if name in REPORTERS and not importlib.util.find_spec(name):
                raise ValueError(
                    f"--report_to {name}: {name} is not installed; install it with pip install {name}."
                )

    def _check_choices(self) -> None:
        if self.use_sinkhorn_lsd and self.no_use_sinkhorn_lsd:
            raise ValueError("--use_sinkhorn_lsd and --no_use_sinkhorn_lsd exclude each other; give one.")
        if self.bits not in (4, 8, 16):
            raise ValueError(f"--bits must be 16, 8 or 4, got {self.bits}.")
        if self.quant_type not in ("nf4", "fp4"):
            raise ValueError(f"--quant_type must be nf4 or fp4, got {self.quant_type!r}.")
        if self.lora_bias not in ("none", "all", "lora_only"):
            raise ValueError(f"--lora_bias must be none, all or lora_only, got {self.lora_bias!r}.")
        if self.max_nan_steps < 1:
            raise ValueError(f"--max_nan_steps must be at least 1, got {self.max_nan_steps}.")
        if self.attn_implementation not in ATTENTIONS:
            raise ValueError(
                f"--attn_implementation must be one of {', '.join(ATTENTIONS)}, "
                f"got {self.attn_implementation!r}."
            )
        if self.attn_implementation == "flash_attention_2" and not importlib.util.find_spec("flash_attn"):
            raise ValueError(
                "--attn_implementation flash_attention_2: flash-attn is not installed; install it with "
                "pip install flash-attn --no-build-isolation, or use sdpa."
            )


def vision_fields(
    model: ModelArguments,
    data: DataArguments,
    training: TrainingArguments,
    checkpoint: VisionFields | None = None,
) -> VisionFields:
    """config.json's multimodal keys: as the flags say, then as the checkpoint does, then the defaults."""
    own = (
        {name: getattr(checkpoint, name) for name in VisionFields.__dataclass_fields__} if checkpoint else {}
    )
    given = {
        name: value
        for arguments in (model, data, training)
        for name, value in vars(arguments).items()
        if name in VisionFields.__dataclass_fields__ and value is not None
    }
    fields = VisionFields(
        **{
            **own,
            **given,
            "mm_vision_tower": model.vision_tower or own.get("mm_vision_tower"),
            "tokenizer_model_max_length": training.model_max_length,
            "conv_version": model.version or own.get("conv_version") or DEFAULT_TEMPLATE,
        }
    )
    # Running statistics must not depend on which rank saves them.
    if training.world_size > 1 and fields.visualprism_norm == "batch":
        fields.visualprism_norm = "sync_batch"
    return fields


def parse(argv: list[str] | None = None) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """The command line (sys.argv by default).

    Raises:
        ValueError: on flags that contradict one another.
    """
    parser = transformers.HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    model, data, training = parser.parse_args_into_dataclasses(args=argv)
    if model.tune_mm_mlp_adapter and training.freeze_mm_mlp_adapter:
        raise ValueError(
            "--tune_mm_mlp_adapter and --freeze_mm_mlp_adapter exclude each other: nothing would learn."
        )
    if model.mm_use_im_start_end and model.tune_mm_mlp_adapter:
        raise ValueError(
            "--mm_use_im_start_end adds words, and --tune_mm_mlp_adapter saves the projector alone: "
            "they would be lost. Add them in stage 2."
        )
    if model.freeze_backbone and training.freeze_mm_mlp_adapter and not model.unfreeze_mm_vision_tower:
        raise ValueError("--freeze_backbone and --freeze_mm_mlp_adapter together leave nothing to learn.")
    if training.mm_vision_tower_lr is not None and not model.unfreeze_mm_vision_tower:
        raise ValueError(
            "--mm_vision_tower_lr is the rate of a tower that learns; add --unfreeze_mm_vision_tower True."
        )
    check_adapters(model, training)
    check_order(data, training)
    return model, data, training


def check_adapters(model: ModelArguments, training: TrainingArguments) -> None:
    """LoRA and quantised weights against the flags that say what learns.

    Raises:
        ValueError: on a contradiction.
    """
    backbone_frozen = model.tune_mm_mlp_adapter or model.freeze_backbone
    if training.lora_enable and backbone_frozen:
        name = "--tune_mm_mlp_adapter" if model.tune_mm_mlp_adapter else "--freeze_backbone"
        raise ValueError(f"--lora_enable adapts the language model, which {name} keeps as it is; give one.")
    if training.lora_weight_path and not training.lora_enable:
        raise ValueError("--lora_weight_path gives adapters to start from; add --lora_enable True.")
    if training.lora_r < 1:
        raise ValueError(f"--lora_r must be at least 1, got {training.lora_r}.")
    if training.bits == 16:
        return
    if not (training.lora_enable or backbone_frozen):
        raise ValueError(
            f"--bits {training.bits}: weights of so few bits cannot learn; add --lora_enable True, or freeze "
            "the language model with --tune_mm_mlp_adapter or --freeze_backbone."
        )
    if model.unfreeze_mm_vision_tower and not training.lora_enable:
        raise ValueError(
            f"--bits {training.bits} without --lora_enable saves the projector alone, and the tower of "
            "--unfreeze_mm_vision_tower would be lost; add --lora_enable True or leave --bits out."
        )
    deepspeed_config = getattr(training, "hf_deepspeed_config", None)
    if deepspeed_config is not None and deepspeed_config.is_zero3():
        raise ValueError(
            f"--bits {training.bits}: ZeRO-3 cuts weights into pieces, and bitsandbytes needs them whole; "
            "use scripts/zero2.json."
        )


def check_order(data: DataArguments, training: TrainingArguments) -> None:
    """Packing and streaming decide what goes together; nothing else can as well."""
    strategy = training.train_sampling_strategy
    if strategy == "batch_rebalance":
        raise ValueError(
            "--train_sampling_strategy batch_rebalance would read every image ahead of the first step; use "
            "--group_by_modality_length True or --packing True."
        )
    grouping = "--group_by_modality_length True" if training.group_by_modality_length else None
    if strategy == "group_by_length":
        grouping = grouping or "--train_sampling_strategy group_by_length"
    if grouping and data.packing:
        raise ValueError(
            f"{grouping} and --packing True exclude each other: packed rows are all of one length."
        )
    if not any(map(is_shards, data.data_path)):
        return
    if grouping:
        raise ValueError(
            f"{grouping} needs all records at the start, and tar shards are a stream; use --packing True."
        )
    if training.max_steps <= 0:
        raise ValueError("--max_steps is missing: tar shards are an endless stream; say how long to train.")
    training.ignore_data_skip = True  # a stream starts where it was, and decodes nothing to get there
