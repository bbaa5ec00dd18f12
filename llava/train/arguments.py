"""Every flag of train_mem.py: units, defaults, and the contradictions that end a run before it starts."""

from dataclasses import dataclass, field

import torch
import transformers

from llava.model.vision_config import VisionFields


def flag(default, help_text: str, **metadata):
    return field(default=default, metadata={"help": help_text, **metadata})


@dataclass
class ModelArguments:
    model_name_or_path: str = flag(None, "Language model: a folder or a hub name.")
    version: str = flag(
        "v1", "Conversation template: plain for stage 1, v1 for Vicuna, qwen_2 for ChatML, ..."
    )
    vision_tower: str = flag(None, "Vision tower: a folder or a hub name of a CLIP, SigLIP or DINOv2 model.")
    mm_vision_select_layer: int = flag(
        -2, "Hidden state for the projector; 0 is the embedding output, -1 the last."
    )
    mm_vision_select_feature: str = flag("patch", "patch, or cls_patch to keep the class token.")
    mm_vision_levels: list[int] = field(
        default=None,
        metadata={
            "help": "Hidden states for multi-level projectors, ascending; default 12 16 22 23 of 24, scaled."
        },
    )
    mm_vision_image_size: int = flag(None, "Side of the tower's input in pixels; default the tower's own.")
    mm_projector_type: str = flag(
        "linear",
        "linear, identity, mlpNx_gelu, visualprism, tokenpacker, avgpool, pixel_shuffle, resampler, "
        "cabstractor, ldpv2, visionzip or prumerge.",
    )
    scale_factor: int = flag(2, "s: a compressing projector gives N / s**2 tokens.")
    num_visual_tokens: int = flag(None, "Tokens an image keeps under visionzip and prumerge.")
    elastic_scale_factors: list[int] = field(
        default=None,
        metadata={"help": "Draw s from these at each step, so that one checkpoint serves them all."},
    )
    visualprism_paths: str = flag(
        "identity,local,wavelet", "Paths of VisualPrism's queries, any of the three."
    )
    visualprism_tpqp: bool = flag(True, "Triple-path queries; False is the identity path alone.")
    visualprism_hkve: bool = flag(
        True, "Hierarchical keys and values; False is TokenPacker's two-layer maps."
    )
    visualprism_wavelet: str = flag("haar", "A discrete wavelet of PyWavelets, e.g. db2, bior2.2.")
    visualprism_norm: str = flag("batch", "batch, sync_batch (what several ranks get for batch) or layer.")
    pretrain_mm_mlp_adapter: str = flag(None, "Stage 1's mm_projector.bin to start from.")
    tune_mm_mlp_adapter: bool = flag(False, "Stage 1: the projector alone learns.")
    freeze_backbone: bool = flag(False, "The language model does not learn.")
    mm_use_im_start_end: bool = flag(False, "Wrap each image in <im_start> and <im_end>.")
    mm_use_im_patch_token: bool = flag(False, "Add <im_patch> to the vocabulary.")
    mm_patch_merge_type: str = flag("flat", "How tiles are joined; flat for a single view.")

    def __post_init__(self):
        for name in ("model_name_or_path", "vision_tower"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is missing: give a folder or a hub name.")
        if self.mm_patch_merge_type != "flat":
            raise ValueError(
                f"--mm_patch_merge_type must be flat with a single view, got {self.mm_patch_merge_type}."
            )


@dataclass
class DataArguments:
    data_path: str = flag(None, "LLaVA records: a JSON or JSONL file.")
    image_folder: str = flag(None, "Folder that the records' image paths start from.")
    image_aspect_ratio: str = flag(
        "square", "square (resize and crop) or pad (to a square of the mean colour)."
    )
    is_multimodal: bool = flag(True, "Records may have images; text-only records are always fine.")
    lazy_preprocess: bool = flag(True, "Records are prepared as they are needed; this is always so.")
    image_grid_pinpoints: str = flag(None, "Resolutions of anyres, as a list of [width, height].")
    patch_num: int = flag(9, "Tiles at most of slice: 9, 16 or 25.")
    on_bad_record: str = flag(
        "fail", "fail, or skip to leave bad records out, count them and list them at the end."
    )

    def __post_init__(self):
        if not self.data_path:
            raise ValueError("--data_path is missing: give a JSON or JSONL file of LLaVA records.")
        if self.image_aspect_ratio not in ("square", "pad"):
            raise ValueError(f"--image_aspect_ratio must be square or pad, got {self.image_aspect_ratio!r}.")
        if self.on_bad_record not in ("fail", "skip"):
            raise ValueError(f"--on_bad_record must be fail or skip, got {self.on_bad_record!r}.")


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    model_max_length: int = flag(2048, "Tokens a sequence, image tokens included; longer ones are cut.")
    freeze_mm_mlp_adapter: bool = flag(False, "The projector does not learn.")
    mm_projector_lr: float = flag(None, "Learning rate of the projector; default --learning_rate.")
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
        if self.lora_enable or self.bits != 16:
            raise ValueError(
                "--lora_enable and --bits 4|8 are not in this version; train in full (leave them out)."
            )
        if self.use_sinkhorn_lsd and not self.no_use_sinkhorn_lsd:
            raise ValueError("--use_sinkhorn_lsd is not in this version; pass --no_use_sinkhorn_lsd.")
        if not torch.cuda.is_available() and not torch.backends.mps.is_available():
            self.use_cpu = True  # without it the world size of several CPU processes reads 1
            self.tf32 = None
            self.dataloader_pin_memory = False
        super().__post_init__()


def vision_fields(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> VisionFields:
    """The multimodal keys that config.json will hold."""
    # Running statistics must not depend on which rank saves them.
    several_ranks = training.world_size > 1 and model.visualprism_norm == "batch"
    return VisionFields(
        mm_vision_tower=model.vision_tower,
        mm_vision_select_layer=model.mm_vision_select_layer,
        mm_vision_select_feature=model.mm_vision_select_feature,
        mm_vision_levels=model.mm_vision_levels,
        mm_vision_image_size=model.mm_vision_image_size,
        mm_projector_type=model.mm_projector_type,
        scale_factor=model.scale_factor,
        num_visual_tokens=model.num_visual_tokens,
        elastic_scale_factors=model.elastic_scale_factors,
        visualprism_paths=model.visualprism_paths,
        visualprism_tpqp=model.visualprism_tpqp,
        visualprism_hkve=model.visualprism_hkve,
        visualprism_wavelet=model.visualprism_wavelet,
        visualprism_norm="sync_batch" if several_ranks else model.visualprism_norm,
        patch_num=data.patch_num,
        image_aspect_ratio=data.image_aspect_ratio,
        image_grid_pinpoints=data.image_grid_pinpoints,
        mm_patch_merge_type=model.mm_patch_merge_type,
        mm_use_im_start_end=model.mm_use_im_start_end,
        mm_use_im_patch_token=model.mm_use_im_patch_token,
        tune_mm_mlp_adapter=model.tune_mm_mlp_adapter,
        tokenizer_model_max_length=training.model_max_length,
        conv_version=model.version,
    )


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
    if model.freeze_backbone and training.freeze_mm_mlp_adapter:
        raise ValueError("--freeze_backbone and --freeze_mm_mlp_adapter together leave nothing to learn.")
    return model, data, training
