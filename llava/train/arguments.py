"""The command line of train_mem.py, and the checks that refuse contradictory flags before a run starts."""

import importlib.util
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import transformers
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from llava.conversation import DEFAULT_TEMPLATE, conv_templates
from llava.data.shards import is_shards
from llava.errors import UserError
from llava.loading import FLASH_PACKAGES, check_installed
from llava.model.multimodal_projector.base import Projector
from llava.model.multimodal_projector.builder import VisionFields, all_options, projector_class
from llava.model.packed_rows import check_takes_a_mask
from llava.train.flags import DataArguments, ModelArguments, TrainingFlags
from llava.train.inputs import check_json, check_package
from llava.train.loader import loader_settings, local_ranks, num_cores
from llava.train.refused import check_refused
from llava.train.validation import check_validation

logger = logging.getLogger(__name__)

ATTENTIONS = ("auto", "sdpa", *FLASH_PACKAGES, "eager")
AT_LEAST_ONE = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "model_max_length",
    "max_nan_steps",
)
REPORTERS = ("tensorboard", "wandb")


@dataclass
class TrainingArguments(TrainingFlags, transformers.TrainingArguments):
    if TYPE_CHECKING:
        dataloader_num_workers: int = 0  # type: ignore[assignment]  # an int once auto is replaced

    def __post_init__(self):
        if self.evaluation_strategy is not None:
            self.eval_strategy = self.evaluation_strategy
        if self.warmup_ratio is not None:
            if self.warmup_steps:
                raise UserError("--warmup_ratio and --warmup_steps set the same thing; give one of them.")
            if not 0 <= self.warmup_ratio < 1:
                raise UserError(
                    f"--warmup_ratio is a fraction of all steps and must be below 1, got {self.warmup_ratio}."
                )
            self.warmup_steps = self.warmup_ratio  # a value below 1 is a share of all steps
        check_refused(self)
        self._check_choices()
        self._check_evaluation()
        self._choose_loader()
        if self.deepspeed:
            check_package("--deepspeed", "deepspeed")
        if isinstance(self.deepspeed, str) and self.deepspeed[:1] != "{" and "." in self.deepspeed:
            # otherwise it is JSON or, if it has no dot, base64, which DeepSpeed's autotuning passes
            check_json(
                "--deepspeed", self.deepspeed, "a DeepSpeed configuration, for example scripts/zero2.json"
            )
        if hasattr(self, "activation_checkpointing") and self.activation_checkpointing is None:
            # the name that newer versions of transformers give to --gradient_checkpointing
            self.activation_checkpointing = self.gradient_checkpointing
            self.activation_checkpointing_kwargs = (
                self.activation_checkpointing_kwargs or self.gradient_checkpointing_kwargs
            )
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # all of them get gradients, even without images
        if not torch.cuda.is_available() and not torch.backends.mps.is_available():
            self.use_cpu = True  # without it world_size would be 1 for several CPU processes
            self.tf32 = None
            self.dataloader_pin_memory = False
            if self.fp16:
                raise UserError(
                    "--fp16 needs a GPU, because it scales the loss there; use --bf16 or float32."
                )
        super().__post_init__()
        # with pinned memory, a batch is copied to the GPU while the previous step is computed
        self.accelerator_config.non_blocking = self.dataloader_pin_memory
        try:
            transformers.Trainer.get_optimizer_cls_and_kwargs(self)
        except (ImportError, ValueError) as error:  # a package is missing
            raise UserError(f"--optim {self.optim.value}: {error}") from error
        for name in self.report_to:
            if name not in INTEGRATION_TO_CALLBACK:
                raise UserError(
                    f"--report_to {name} is unknown; give none, all, or some of "
                    f"{', '.join(INTEGRATION_TO_CALLBACK)}."
                )
            if name in REPORTERS and not importlib.util.find_spec(name):
                raise UserError(
                    f"--report_to {name}: {name} is not installed; install it with pip install {name}."
                )

    def _check_evaluation(self) -> None:
        strategy = getattr(self.eval_strategy, "value", self.eval_strategy)
        if (strategy == "steps") != bool(self.eval_steps):
            raise UserError(
                "--eval_strategy steps and --eval_steps N need each other; give both, or neither."
            )
        saves = getattr(self.save_strategy, "value", self.save_strategy)
        if self.load_best_model_at_end and (
            strategy == "no" or saves != strategy or (saves == "steps" and self.save_steps != self.eval_steps)
        ):
            raise UserError(
                "--load_best_model_at_end needs a checkpoint at each evaluation: give --save_strategy and "
                f"--eval_strategy the same value, got {saves} and {strategy}; with steps, also give "
                f"--save_steps and --eval_steps the same value, got {self.save_steps:g} and "
                f"{self.eval_steps or 0:g}."
            )

    def _choose_loader(self) -> None:
        """Set the number of workers; for `auto`, loader_settings gives it and the default prefetch factor."""
        self.workers_are_auto = self.dataloader_num_workers == "auto"
        workers, ahead = loader_settings(num_cores(), local_ranks(), self.gradient_accumulation_steps)
        if self.workers_are_auto:
            self.dataloader_num_workers = workers
        try:
            self.dataloader_num_workers = int(self.dataloader_num_workers)
        except ValueError as error:
            raise UserError(
                f"--dataloader_num_workers must be a number or auto, got {self.dataloader_num_workers!r}."
            ) from error
        if self.workers_are_auto and self.dataloader_prefetch_factor is None:
            self.dataloader_prefetch_factor = ahead

    def _check_choices(self) -> None:
        if self.mm_projector_lr not in (None, "auto"):
            try:
                self.mm_projector_lr = float(self.mm_projector_lr)  # type: ignore[assignment]
            except ValueError as error:
                raise UserError(
                    f"--mm_projector_lr must be a number or auto, got {self.mm_projector_lr!r}."
                ) from error
        if self.use_sinkhorn_lsd and self.no_use_sinkhorn_lsd:
            raise UserError("--use_sinkhorn_lsd and --no_use_sinkhorn_lsd exclude each other; give one.")
        if self.bits not in (4, 8, 16):
            raise UserError(f"--bits must be 16, 8 or 4, got {self.bits}.")
        if self.quant_type not in ("nf4", "fp4"):
            raise UserError(f"--quant_type must be nf4 or fp4, got {self.quant_type!r}.")
        if self.lora_bias not in ("none", "all", "lora_only"):
            raise UserError(f"--lora_bias must be none, all or lora_only, got {self.lora_bias!r}.")
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}.")
        if self.recompute_above < 0:
            raise UserError(f"--recompute_above must be at least 0, got {self.recompute_above}.")
        if self.recompute_above and not self.gradient_checkpointing:
            raise UserError("--recompute_above needs --gradient_checkpointing True; give both, or neither.")
        if self.max_steps == 0 or (self.max_steps < 0 and self.num_train_epochs <= 0):
            raise UserError(
                f"--max_steps {self.max_steps} and --num_train_epochs {self.num_train_epochs:g} leave no "
                "step to train; give one of them a number above 0."
            )
        if self.attn_implementation not in ATTENTIONS:
            raise UserError(
                f"--attn_implementation must be one of {', '.join(ATTENTIONS)}, "
                f"got {self.attn_implementation!r}."
            )
        if self.attn_implementation in FLASH_PACKAGES:
            check_installed(self.attn_implementation)


def choose_template(version: str | None, trained_with: dict[str, str | None]) -> str:
    """Return the conversation template's name: --version, else the weights' own, else DEFAULT_TEMPLATE.

    Logs a warning if --version is not the template that the weights were trained with.

    Args:
        version: --version.
        trained_with: maps each source of weights to its conv_version; the first that is not empty counts.
    """
    source, own = next(((source, own) for source, own in trained_with.items() if own), (None, None))
    if version and own and conv_templates.get(version) != conv_templates.get(own):
        logger.warning(
            "--version %s changes the conversation template: %s was trained with %s. Leave "
            "--version out to keep the old one.",
            version,
            source,
            own,
        )
    return version or own or DEFAULT_TEMPLATE


def vision_fields(
    model: ModelArguments,
    data: DataArguments,
    training: TrainingArguments,
    checkpoint: VisionFields | None = None,
    template: str = DEFAULT_TEMPLATE,
) -> VisionFields:
    """The multimodal keys of config.json: from the flags, else from the checkpoint, else the defaults.

    Args:
        template: the result of choose_template.
    """
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
            "conv_version": template,
        }
    )
    kind = projector_class(fields.mm_projector_type)
    check_options(kind, fields.mm_projector_type, given)
    if training.world_size > 1:
        kind.prepare_for_ranks(fields)
    return fields


def check_options(kind: type[Projector], name: str | None, given: Iterable[str]) -> None:
    """Refuse options of other projectors, which would have no effect.

    Args:
        kind, name: the projector's class and its --mm_projector_type.
        given: names of the flags that were given.
    Raises:
        UserError: if there are any; it names them and the options that this projector has.
    """
    own = [declared.name for declared in kind.Options.declared()]
    if foreign := [flag for flag in given if flag in all_options() and flag not in own]:
        raise UserError(
            f"{', '.join(f'--{flag}' for flag in foreign)} would have no effect: the projector is of type "
            f"{name}, and its options are {', '.join(f'--{flag}' for flag in own)}. "
            "Leave the flag out, or choose another --mm_projector_type."
        )


def projector_rate(training: TrainingArguments, kind: type[Projector]) -> float:
    """The projector's peak learning rate. Logs it if `auto` makes it lower than --learning_rate."""
    rate = training.mm_projector_lr
    if rate is None:
        return training.learning_rate
    if rate != "auto":
        return rate  # type: ignore[return-value]
    if kind.highest_rate is None or kind.highest_rate >= training.learning_rate:
        return training.learning_rate
    logger.info(
        "the projector's learning rate is %g and not --learning_rate %g, because %s learned badly at higher "
        "rates; --mm_projector_lr changes it",
        *(kind.highest_rate, training.learning_rate, kind.__name__),
    )
    return kind.highest_rate


def parse(argv: list[str] | None = None) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Parse the command line (sys.argv by default) and check its flags.

    Raises:
        UserError: if a flag is unknown, or flags contradict one another.
    """
    parser = transformers.HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    parser.add_argument("--help_all", action="help", help="This page.")
    try:
        model, data, training, unknown = parser.parse_args_into_dataclasses(
            args=argv, return_remaining_strings=True
        )
    except ValueError as error:  # transformers raises it for flags that contradict one another
        raise UserError(str(error)) from error
    if unknown:
        raise UserError(
            f"unknown flag {' '.join(unknown)}; --help lists this project's flags, and --help_all also "
            "those of transformers."
        )
    if model.tune_mm_mlp_adapter and training.freeze_mm_mlp_adapter:
        raise UserError(
            "--tune_mm_mlp_adapter and --freeze_mm_mlp_adapter exclude each other: nothing would be trained."
        )
    if model.mm_use_im_start_end and model.tune_mm_mlp_adapter:
        raise UserError(
            "--mm_use_im_start_end adds words, but --tune_mm_mlp_adapter saves only the projector: "
            "they would be lost. Add them in stage 2."
        )
    if model.freeze_backbone and training.freeze_mm_mlp_adapter and not model.unfreeze_mm_vision_tower:
        raise UserError("--freeze_backbone and --freeze_mm_mlp_adapter together leave nothing to train.")
    if training.mm_vision_tower_lr is not None and not model.unfreeze_mm_vision_tower:
        raise UserError(
            "--mm_vision_tower_lr needs a vision tower that is trained; add --unfreeze_mm_vision_tower True."
        )
    trained = model.pretrain_mm_mlp_adapter or training.lora_weight_path
    if training.mm_projector_warm_start and (trained or training.freeze_mm_mlp_adapter):
        reason = f"{trained} has a trained one" if trained else "--freeze_mm_mlp_adapter freezes it"
        raise UserError(
            f"--mm_projector_warm_start needs a new projector that is trained, but {reason}; leave it out."
        )
    check_adapters(model, training)
    check_order(data, training)
    if data.share_images:
        check_sharing(data, training)
    check_validation(data, training)
    if under_zero_3(training):
        check_zero_3(model, training)
    return model, data, training


def check_adapters(model: ModelArguments, training: TrainingArguments) -> None:
    """Check the flags of LoRA and quantisation against those that choose the trainable parts.

    Raises:
        UserError: on a contradiction.
    """
    backbone_frozen = model.tune_mm_mlp_adapter or model.freeze_backbone
    if training.lora_enable and backbone_frozen:
        name = "--tune_mm_mlp_adapter" if model.tune_mm_mlp_adapter else "--freeze_backbone"
        raise UserError(f"--lora_enable trains the language model, but {name} freezes it; give one of them.")
    if training.lora_weight_path and not training.lora_enable:
        raise UserError("--lora_weight_path gives adapters to start from; add --lora_enable True.")
    if training.lora_r < 1:
        raise UserError(f"--lora_r must be at least 1, got {training.lora_r}.")
    if training.bits == 16:
        return
    if not (training.lora_enable or backbone_frozen):
        raise UserError(
            f"--bits {training.bits}: quantised weights cannot be trained; add --lora_enable True, or freeze "
            "the language model with --tune_mm_mlp_adapter or --freeze_backbone."
        )
    if model.unfreeze_mm_vision_tower and not training.lora_enable:
        raise UserError(
            f"--bits {training.bits} without --lora_enable saves only the projector, so the tower that "
            "--unfreeze_mm_vision_tower trains would be lost; add --lora_enable True or leave --bits out."
        )
    if under_zero_3(training):
        raise UserError(
            f"--bits {training.bits}: ZeRO-3 partitions the weights, but bitsandbytes needs them whole; "
            "use scripts/zero2.json."
        )


def under_zero_3(training: TrainingArguments) -> bool:
    """Whether DeepSpeed cuts the weights into pieces, one for each rank."""
    config = getattr(training, "hf_deepspeed_config", None)
    return config is not None and config.is_zero3()


def check_zero_3(model: ModelArguments, training: TrainingArguments) -> None:
    """Check what a run needs if ZeRO-3 splits the weights over the ranks.

    Raises:
        UserError: if ranks would wait for one another for ever, or no rank would have the weights to save.
    """
    if training.recompute_above:
        raise UserError(
            "--recompute_above: under ZeRO-3, a rank that recomputes a layer would wait for ranks that do "
            "not; leave the flag out, or use scripts/zero2.json."
        )
    gathers = "zero_optimization.stage3_gather_16bit_weights_on_model_save"
    saves_all = not (model.tune_mm_mlp_adapter or training.lora_enable)
    if saves_all and not training.hf_deepspeed_config.is_true(gathers):
        raise UserError(f"--deepspeed: set {gathers} to true; without it, no model would be saved.")


def check_order(data: DataArguments, training: TrainingArguments) -> None:
    """Refuse grouping by length if packing or streaming already decides which records share a batch."""
    grouping = "--group_by_modality_length True" if training.group_by_modality_length else None
    if training.train_sampling_strategy == "group_by_length":
        grouping = grouping or "--train_sampling_strategy group_by_length"
    if grouping and data.packing:
        raise UserError(f"{grouping} and --packing True exclude each other: all packed rows have one length.")
    if not any(map(is_shards, data.data_path)):
        return
    if grouping:
        raise UserError(
            f"{grouping} needs all records at the start, but tar shards are a stream; use --packing True."
        )
    if training.max_steps <= 0:
        raise UserError("--max_steps is missing: tar shards are an endless stream; give a number of steps.")
    training.ignore_data_skip = True  # a resumed stream starts at its position without decoding what was seen


def check_sharing(data: DataArguments, training: TrainingArguments) -> None:
    """Check the flags that --share_images depends on.

    Raises:
        UserError: if the rows are not packed, if the records are a stream, or if the attention takes no mask.
    """
    if not data.packing:
        raise UserError("--share_images True is a way to fill packed rows; add --packing True.")
    if shards := next(filter(is_shards, data.data_path), None):
        raise UserError(
            f"--share_images True needs all records at the start, and {shards} is a stream of tar shards; "
            "leave it out, or give files of records."
        )
    if training.attn_implementation != "auto":
        check_takes_a_mask(training.attn_implementation)
