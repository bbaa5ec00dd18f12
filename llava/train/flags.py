"""This package's own flags. Imports neither torch nor transformers, so that --help is answered at once."""

import argparse
import dataclasses
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from llava.errors import UserError
from llava.model.multimodal_projector.options import DeclaredOption, declared_options, registered_types


def flag(default, help_text: str):
    return field(default=default, metadata={"help": help_text})


# Flags that shape the model default to None: a multimodal checkpoint then keeps its own values, and a plain
# language model gets VisionFields' defaults. Each projector's options are declared in its own file.
@dataclass
class ModelFlags:
    model_name_or_path: str = flag(
        None, "Language model, or a multimodal checkpoint to continue from: a folder or a hub name."
    )
    version: str = flag(
        None,
        "Conversation template: plain for stage 1, v1 for Vicuna (default), qwen_2 for ChatML, ...; the "
        "default for a multimodal checkpoint or adapters is their own template.",
    )
    vision_tower: str = flag(None, "Vision tower: a folder or a hub name of a CLIP, SigLIP or DINOv2 model.")
    mm_vision_select_layer: int = flag(
        None, "Hidden state that the projector gets; 0 is the embedding output, -1 the last; default -2."
    )
    mm_vision_select_feature: str = flag(
        None, "Tokens that the projector gets: patch (default), or cls_patch to keep the class token."
    )
    mm_vision_levels: list[int] = flag(
        None,
        "Hidden states that multi-level projectors get, ascending; default 12 16 22 23 for 24 layers, "
        "scaled to other depths.",
    )
    mm_vision_image_size: int = flag(None, "Side of the tower's input in pixels; default: the tower's own.")
    mm_projector_type: str = flag(
        None, f"Type of the projector: {', '.join(registered_types())} or mlpNx_gelu; default linear."
    )
    scale_factor: int = flag(
        None, "Scale factor s: a compressing projector makes N / s**2 tokens of N patches; default 2."
    )
    elastic_scale_factors: list[int] = flag(
        None, "Draw s from these at each step, so that one checkpoint works with all of them."
    )
    pretrain_mm_mlp_adapter: str = flag(None, "The mm_projector.bin of stage 1, to start from.")
    tune_mm_mlp_adapter: bool = flag(False, "Stage 1: train only the projector.")
    freeze_backbone: bool = flag(False, "Do not train the language model.")
    unfreeze_mm_vision_tower: bool = flag(False, "Train the vision tower too.")
    mm_use_im_start_end: bool = flag(None, "Wrap each image in <im_start> and <im_end>.")
    mm_use_im_patch_token: bool = flag(None, "Add <im_patch> to the vocabulary.")
    mm_patch_merge_type: str = flag(
        None, "How the tiles of anyres are joined: flat (default), spatial or spatial_unpad."
    )

    def __post_init__(self):
        from llava.tiling import PATCH_MERGE_TYPES, check_choice  # imports torch

        if not self.model_name_or_path:
            raise UserError("--model_name_or_path is missing: give a folder or a hub name.")
        if self.mm_patch_merge_type is not None:
            check_choice("mm_patch_merge_type", self.mm_patch_merge_type, PATCH_MERGE_TYPES)
        if self.tune_mm_mlp_adapter and self.unfreeze_mm_vision_tower:
            raise UserError(
                "--unfreeze_mm_vision_tower trains the tower, but --tune_mm_mlp_adapter saves only the "
                "projector: the tower would be lost. Train it in stage 2."
            )


def option_flag(declared: DeclaredOption) -> tuple[str, type, dataclasses.Field]:
    """The flag of a projector's option: its name, type and dataclass field."""
    default = "" if declared.default is None else f"; default {declared.default}"
    return declared.name, declared.kind, flag(None, f"{declared.help_text.removesuffix('.')}{default}.")


if TYPE_CHECKING:

    class ModelArguments(ModelFlags):
        """For type checkers, without the projectors' options: their names are known only at run time."""

else:
    ModelArguments = dataclasses.make_dataclass(
        "ModelArguments",
        map(option_flag, declared_options()),
        bases=(ModelFlags,),
        namespace={"__module__": __name__},
    )


@dataclass
class DataArguments:
    data_path: list[str] = flag(
        None,
        "Training records, in any mixture: JSON, JSONL, parquet or Arrow files, folders of them, data sets "
        "of the hub (OWNER/NAME:CONFIG); or only WebDataset shards, 'shards/{000..127}.tar' (docs/data.md).",
    )
    data_weights: list[float] = flag(
        None, "Passes over each --data_path in an epoch: 0.5 uses a random half; default: 1 for each."
    )
    packing: bool = flag(
        False, "Fill sequences of --model_max_length with several records that do not attend to one another."
    )
    share_images: bool = flag(
        False,
        "With --packing True: put records on the same picture into one sequence, which has the picture and "
        "what comes before it only once. None of the records sees another.",
    )
    eval_data_path: list[str] = flag(
        None,
        "Records for the evaluations during training that --eval_strategy asks for: the kinds of --data_path "
        "except shards, each path a set of its own.",
    )
    image_folder: str = flag(None, "Folder to which the records' image paths are relative.")
    image_aspect_ratio: str = flag(
        None,
        "square (resize and crop, the default), pad (to a square, with the mean colour), slice (tiles of the "
        "tower's input size and a thumbnail) or anyres (the tiles of LLaVA-1.6).",
    )
    is_multimodal: bool = flag(True, "Records may have images; False is refused.")
    lazy_preprocess: bool = flag(True, "Records are prepared as they are needed; False is refused.")
    jpeg_draft: bool = flag(
        False,
        "Decode JPEG pictures at a half, a quarter or an eighth of their size if that is still twice the "
        "tower's input: faster for large photographs, with slightly different pixels.",
    )
    image_grid_pinpoints: str = flag(
        None,
        "Resolutions of anyres, as a list of [width, height], or grids of tiles, '(1x1),...,(6x6)'; default: "
        "the grids 1x2, 2x1, 2x2, 3x1 and 1x3 of LLaVA-1.6.",
    )
    patch_num: int = flag(None, "Largest number of tiles with slice: 9 (default), 16 or 25.")
    on_bad_record: str = flag("fail", "fail stops; skip leaves bad records out, and lists them at the end.")
    check_images: str = flag(
        "start",
        "start checks before the first step that all image files exist; lazy checks each when it is needed.",
    )
    index_folder: str = flag(
        None,
        "Folder where the positions and lengths of records are kept for all ranks and later runs; default "
        "~/.cache/llava/records.",
    )

    def __post_init__(self):
        from llava.tiling import ASPECT_RATIOS, PATCH_NUMS, check_choice  # imports torch

        if not self.data_path:
            raise UserError("--data_path is missing: give a file or a folder of records.")
        if not self.is_multimodal:
            raise UserError(
                "--is_multimodal False is refused: each record says whether it has images; leave it out."
            )
        if not self.lazy_preprocess:
            raise UserError(
                "--lazy_preprocess False is refused: records are prepared as they are needed, so that memory "
                "does not grow with the set; leave it out."
            )
        if self.data_weights is not None and len(self.data_weights) != len(self.data_path):
            raise UserError(
                f"--data_weights needs one number for each --data_path, got {len(self.data_weights)} for "
                f"{len(self.data_path)}."
            )
        if any(weight <= 0 for weight in self.data_weights or ()):
            raise UserError(
                f"--data_weights must be above 0, got {self.data_weights}; to skip a file, leave it out."
            )
        if self.on_bad_record not in ("fail", "skip"):
            raise UserError(f"--on_bad_record must be fail or skip, got {self.on_bad_record!r}.")
        if self.check_images not in ("start", "lazy"):
            raise UserError(f"--check_images must be start or lazy, got {self.check_images!r}.")
        if self.image_aspect_ratio is not None:
            check_choice("image_aspect_ratio", self.image_aspect_ratio, ASPECT_RATIOS)
        if self.patch_num is not None:
            check_choice("patch_num", self.patch_num, PATCH_NUMS)


@dataclass
class TrainingFlags:
    """Training flags that transformers.TrainingArguments lacks, or that get other defaults here."""

    model_max_length: int = flag(2048, "Tokens per sequence, with image tokens; longer sequences are cut.")
    freeze_mm_mlp_adapter: bool = flag(False, "Do not train the projector.")
    mm_projector_lr: str = flag(
        None,
        "Learning rate of the projector; default: --learning_rate; auto: the lower one of --learning_rate "
        "and the highest rate that suits the type of projector.",
    )
    mm_vision_tower_lr: float = flag(
        None, "Learning rate of a vision tower that is trained; default: --learning_rate."
    )
    max_nan_steps: int = flag(
        3, "Number of steps in a row without a finite loss after which the run stops and names the records."
    )
    group_by_modality_length: bool = flag(
        False, "Make batches of records of one modality and similar length."
    )
    recompute_above: int = flag(
        0,
        "With --gradient_checkpointing True: only batches of more positions recompute their activations; "
        "with the default 0, every batch does.",
    )
    extend: bool = flag(
        False,
        "Continue a complete run to a larger --max_steps or --num_train_epochs, with the learning rate "
        "schedule of the longer run.",
    )
    dataloader_num_workers: str = flag(
        "auto",
        "Processes per rank that prepare batches: a number, or auto, which depends on the cores and ranks.",
    )
    mm_projector_warm_start: int = flag(
        0,
        "Before the first step, fit a new projector's last linear map to the words of the answers of this "
        "many pictures; 0 keeps its initial weights.",
    )
    attn_implementation: str = flag(
        "auto", "The language model's attention: auto, sdpa, flash_attention_2, flash_attention_3 or eager."
    )
    cache_dir: str = flag(None, "Folder where files from the hub are kept.")
    remove_unused_columns: bool = flag(False, "Remove fields of records; True is refused.")

    lora_enable: bool = flag(False, "Train low-rank adapters (LoRA) of the language model.")
    lora_r: int = flag(64, "Rank r of the adapters.")
    lora_alpha: int = flag(16, "Scale of the adapters: their output is multiplied by lora_alpha / lora_r.")
    lora_dropout: float = flag(0.05, "Dropout probability on the adapters' input.")
    lora_weight_path: str = flag("", "Folder with adapters to start from.")
    lora_bias: str = flag("none", "Biases that are trained with the adapters: none, all or lora_only.")
    bits: int = flag(16, "Bits of the language model's weights: 16, 8 or 4.")
    double_quant: bool = flag(True, "Quantise the quantisation constants too.")
    quant_type: str = flag("nf4", "4-bit type: nf4 or fp4.")

    use_sinkhorn_lsd: bool = flag(False, "Add the Sinkhorn regulariser to the loss.")
    no_use_sinkhorn_lsd: bool = flag(False, "Do not add it; published scripts use this flag.")
    sinkhorn_alpha_ce: float = flag(1.0, "Weight of the cross-entropy if the regulariser is added.")
    sinkhorn_beta: float = flag(0.6, "Weight of the regulariser.")
    sinkhorn_tau_sd: float = flag(2.2, "Temperature of the regulariser's softmax.")
    sinkhorn_lambda: float = flag(0.12, "Weight of the entropy of the regulariser's transport plan.")
    sinkhorn_iters: int = flag(16, "Number of Sinkhorn iterations.")
    sinkhorn_max_tokens: int = flag(
        768, "Largest number of labelled positions; from more, this many are sampled."
    )

    # Flags of published scripts that transformers 5 renamed
    evaluation_strategy: str = flag(None, "Older name of --eval_strategy.")
    warmup_ratio: float = flag(
        None, "Fraction of the steps for the warm-up; older form of --warmup_steps below 1."
    )


class DeclaredFlag(NamedTuple):
    """A flag of this project as --help and the documentation show it; `kind` is the type of one value."""

    name: str
    kind: str
    many: bool
    default: Any
    help_text: str


def declared_flags() -> dict[str, list[DeclaredFlag]]:
    """This project's own training flags, by the groups model, data and training."""
    groups = {"model": ModelArguments, "data": DataArguments, "training": TrainingFlags}
    return {title: [_declared(field) for field in dataclasses.fields(kind)] for title, kind in groups.items()}


def _declared(declared: dataclasses.Field) -> DeclaredFlag:
    many = isinstance(declared.type, types.GenericAlias)  # list[...]
    of = declared.type.__args__[0] if many else declared.type  # type: ignore[union-attr]
    return DeclaredFlag(declared.name, of.__name__, many, declared.default, declared.metadata["help"])  # type: ignore[union-attr]


def help_page() -> str:
    """The page that --help prints: every flag of our own with its type, meaning and default."""
    parser = argparse.ArgumentParser(
        usage="train_mem.py --model_name_or_path LANGUAGE_MODEL --vision_tower TOWER --data_path RECORDS "
        "--output_dir FOLDER [flags]",
        description="Runs one training stage. Besides these flags, it takes every argument of "
        "transformers.TrainingArguments, for example --learning_rate, --num_train_epochs or --deepspeed.",
        add_help=False,
    )
    for title, flags in declared_flags().items():
        group = parser.add_argument_group(title)
        for declared in flags:
            shown = "" if declared.default in (None, "") else f" [{declared.default}]"
            group.add_argument(
                f"--{declared.name}",
                metavar=declared.kind.upper(),
                nargs="+" if declared.many else None,
                help=(declared.help_text + shown).replace("%", "%%"),
            )
    group = parser.add_argument_group("help")
    group.add_argument("--help", action="help", help="This page.")
    group.add_argument("--help_all", action="help", help="All flags, with those of transformers.")
    return parser.format_help()
