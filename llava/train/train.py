"""Runs one training stage: arguments, model, trainable parameters, tokenizer, data, trainer, result."""

import logging
import sys
from collections.abc import Callable
from functools import partial

import torch
import transformers
from accelerate import PartialState
from huggingface_hub.utils import enable_progress_bars
from tqdm import tqdm
from transformers import PreTrainedModel

from llava.chat_template import chat_template
from llava.command import message
from llava.conversation import template_of
from llava.data.collator import Collator
from llava.data.sample import SampleBuilder
from llava.decoding import end_with_turns
from llava.errors import UserError
from llava.model.adapters import load_adapters, load_trainables
from llava.model.builder import check_start, image_processor_of, load_with_vision, quantization
from llava.model.checkpoint import TRAINABLES_FILE, load_projector, read_projector
from llava.model.compatibility import check_stage_1
from llava.model.liger import apply_liger_kernels, check_liger
from llava.model.multimodal_projector.builder import VisionFields, projector_class
from llava.model.plan import CheckpointPlan, find_folder, look_at, plan_checkpoint
from llava.model.tokenizer import load_tokenizer
from llava.quiet import quiet_libraries
from llava.tiling import num_positions
from llava.train import saving, trainable
from llava.train.arguments import (
    DataArguments,
    ModelArguments,
    TrainingArguments,
    choose_template,
    parse,
    projector_rate,
    vision_fields,
)
from llava.train.checkpoint_changes import check_changes
from llava.train.extension import extends
from llava.train.extension_locks import remove_stale_locks
from llava.train.folder_lock import lock_output_folder
from llava.train.guard import RunStopped
from llava.train.inputs import check_inputs
from llava.train.llava_trainer import LlavaTrainer
from llava.train.lora import add_adapters, prepare_quantized
from llava.train.run_record import RunRecord
from llava.train.training_data import load_data, load_eval_data
from llava.train.warm_start import warm_start

logger = logging.getLogger(__name__)

# Like load_with_vision: (plan, vision settings, transformers' options, the projector's dtype) to a model
WeightReader = Callable[[CheckpointPlan, VisionFields, dict, torch.dtype | None], PreTrainedModel]


def load_model(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    plan: CheckpointPlan,
    read_weights: WeightReader = load_with_vision,
):
    """Load a language model with a new vision tower and projector, or a multimodal checkpoint with its own.

    The flags choose the trainable parameters. These are in float32 and autocast (DeepSpeed keeps its own
    float32 copies); frozen ones are in the compute dtype.
    """
    compute_dtype = trainable.compute_dtype(training_args)
    learns = trainable.learning_parts(model_args, training_args)
    autocast = not training_args.deepspeed
    trains_weights = learns[trainable.VISION_TOWER] or (
        learns[trainable.LANGUAGE_MODEL] and not training_args.lora_enable
    )
    attention = training_args.attn_implementation
    options = {
        "dtype": torch.float32 if autocast and trains_weights else compute_dtype,
        "attn_implementation": None if attention == "auto" else attention,
    }
    if training_args.bits < 16:
        options |= quantization(
            training_args.bits, compute_dtype, training_args.double_quant, training_args.quant_type
        )
        options["device_map"] = {"": training_args.device}
    if not (plan.sees or model_args.vision_tower):
        raise UserError("--vision_tower is missing: give a folder or a hub name.")
    adapters = None
    if training_args.lora_weight_path:
        adapters = look_at(
            find_folder(training_args.lora_weight_path, "--lora_weight_path", training_args.cache_dir)
        )
    template = choose_template(model_args.version, trained_templates(model_args, plan, adapters))
    own = plan.config if plan.sees else None
    fields = vision_fields(model_args, data_args, training_args, own, template)
    if own is not None:
        check_changes(fields, own, model_args.model_name_or_path)
        if training_args.mm_projector_warm_start:
            raise UserError(
                f"--mm_projector_warm_start needs a new projector, but {model_args.model_name_or_path} has a "
                "trained one; leave it out."
            )
    training_args.mm_projector_lr = projector_rate(training_args, projector_class(fields.mm_projector_type))  # type: ignore[assignment]
    model = read_weights(plan, fields, options, torch.float32 if autocast else None)
    model.config.use_cache = False
    model.recompute_above = training_args.recompute_above
    if training_args.use_liger_kernel:
        apply_liger_kernels(model)
    if training_args.lora_enable:
        add_adapters(model, training_args, model_args.model_name_or_path)
    trainable.set_trainable(model, learns, adapters=training_args.lora_enable)
    if autocast:
        trainable.set_dtypes(model, compute_dtype)
    if training_args.bits < 16:
        prepare_quantized(model)
    load_earlier_stage(model, model_args, adapters)
    return model


def trained_templates(
    model_args: ModelArguments, plan: CheckpointPlan, adapters: CheckpointPlan | None
) -> dict[str, str | None]:
    """Maps the weights that a run starts from to their templates, with adapters before their base model.

    Stage 1's projector is not included: it is trained with `plain` for a stage 2 with another template.
    """
    templates = {} if adapters is None else {str(adapters.path): adapters.saved.get("conv_version")}
    return {**templates, model_args.model_name_or_path: plan.saved.get("conv_version")}


def load_earlier_stage(model, model_args: ModelArguments, adapters: CheckpointPlan | None) -> None:
    """Load stage 1's projector, then adapters to start from and, if any, the weights trained with them."""
    if model_args.pretrain_mm_mlp_adapter:
        source = model_args.pretrain_mm_mlp_adapter
        state = read_projector(source)
        check_stage_1(source, state, model.config)
        load_projector(model, state, source)
    if adapters is not None:
        check_start(adapters, model.config, model_args.model_name_or_path)
        load_adapters(model, adapters.path)
        if adapters.learned:
            trainables = adapters.path / TRAINABLES_FILE
            load_trainables(model, adapters.learned, str(trainables), complete=True)
            logger.info("projector: from %s, like the adapters", adapters.path)


def add_words(model, tokenizer) -> None:
    """Add the tokens of --mm_use_im_start_end and --mm_use_im_patch_token that the vocabulary lacks.

    Raises:
        UserError: if their embeddings would not be trained.
    """
    learns, num_words = model.get_input_embeddings().weight.requires_grad, len(tokenizer)
    model.initialize_vision_tokenizer(model.config, tokenizer)
    if len(tokenizer) > num_words and not learns:
        raise UserError(
            "--mm_use_im_start_end and --mm_use_im_patch_token add words, but their embeddings would stay "
            "frozen; leave these flags out, or train the language model in full."
        )


def prepare(argv: list[str] | None, read_weights: WeightReader = load_with_vision) -> LlavaTrainer | None:
    """Prepare a run up to its first step, so that a user's mistakes end it here. None if it is complete."""
    quiet_libraries()
    model_args, data_args, training_args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if not training_args.should_log:
        logging.getLogger().setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()  # for files read and written; the steps have their own
    enable_progress_bars()  # for downloads
    if saving.is_complete(training_args.output_dir) and not extends(training_args):
        logger.info(
            "%s is complete; to train again, remove it or choose another --output_dir.",
            training_args.output_dir,
        )
        return None
    if training_args.use_liger_kernel:
        check_liger()
    check_inputs(model_args, data_args, training_args)
    saving.check_writable(training_args.output_dir)
    plan = plan_checkpoint(
        model_args.model_name_or_path, "--model_name_or_path", cache_dir=training_args.cache_dir
    )
    if training_args.deepspeed:
        import deepspeed

        remove_stale_locks()
        # These collectives serve only inference, and on a CPU they would first be compiled for a minute
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # Before from_pretrained, which under ZeRO-3 splits the weights over the ranks as it reads them
        deepspeed.init_distributed(dist_backend="gloo" if training_args.use_cpu else None)
    with lock_output_folder(training_args) as lock:
        trainer = build_trainer(model_args, data_args, training_args, plan, read_weights)
        trainer.folder_lock = lock.pop_all()
    return trainer


def build_trainer(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    plan: CheckpointPlan,
    read_weights: WeightReader,
) -> LlavaTrainer:
    """Build the model, tokenizer and data, and the trainer for them."""
    transformers.set_seed(training_args.seed)
    logger.info("loading %s", plan.path)
    model = load_model(model_args, data_args, training_args, plan, read_weights)
    tokenizer = load_tokenizer(
        plan.path, padding_side="right", model_max_length=training_args.model_max_length
    )
    # Otherwise the tokenizer warns of each text that is cut to --model_max_length; run.json counts them.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    if data_args.packing and not model.takes_position_ids:
        raise UserError(
            f"--packing: {type(model).__name__} cannot restart positions at each record of a sequence; "
            "leave it out, or use a language model with rotary positions."
        )
    add_words(model, tokenizer)
    template = template_of(model.config)
    end_with_turns(model, tokenizer, template)
    tokenizer.chat_template = chat_template(template, model.config.mm_use_im_start_end)  # saved with it
    image_processor = image_processor_of(model, plan)
    builder = sample_builder(model, tokenizer, image_processor, data_args.jpeg_draft)
    if not training_args.should_log:
        logging.getLogger().setLevel(logging.WARNING)  # each process warns of its own records
    dataset = load_data(data_args, training_args, builder)
    eval_sets = load_eval_data(data_args, training_args, builder)
    return LlavaTrainer(
        model=model,
        args=training_args,
        train_dataset=dataset,
        eval_dataset=eval_sets or None,
        data_collator=Collator(tokenizer.pad_token_id, padding_side="right"),
        processing_class=tokenizer,
        image_processor=image_processor,
        callbacks=[RunRecord(model_args, data_args, dataset, eval_sets)],
    )


def sample_builder(
    model: PreTrainedModel, tokenizer, image_processor, jpeg_draft: bool = False
) -> SampleBuilder:
    """Return the builder that makes a model's input sequences from records."""
    config = model.config
    budgets = config.elastic_scale_factors or [None]
    tokens = [model.tokens_per_view(scale_factor) for scale_factor in budgets]
    logger.info("visual tokens per view: %s", tokens)
    logger.info("conversation template: %s", config.conv_version)
    return SampleBuilder(
        tokenizer,
        image_processor,
        template=config.conv_version,
        image_config=config,
        visual_positions=partial(num_positions, model.tiling, num_tokens=max(tokens)),
        model_max_length=config.tokenizer_model_max_length,
        mm_use_im_start_end=config.mm_use_im_start_end,
        jpeg_draft=jpeg_draft,
    )


def train(argv: list[str] | None = None) -> None:
    """Run one stage. Resumes from its last complete checkpoint, and does nothing if the run is complete.

    Exits with status 143 if SIGTERM ended the run, and with 1 and a message if something else did.

    Args:
        argv: the flags; by default those of the command line.
    """
    try:
        trainer = prepare(argv)
        if trainer is not None:
            with trainer.folder_lock:
                run(trainer)
    except UserError as error:
        sys.exit(message(error, "train_mem.py"))
    except RunStopped as stop:
        if str(stop):
            tqdm.write(f"train_mem.py: {stop}", file=sys.stderr)  # on its own line, not in a progress bar
        if stop.together:
            PartialState().destroy_process_group()
        sys.exit(stop.status)


def run(trainer: LlavaTrainer) -> None:
    """Train to the end and save the result."""
    whole = saving.checkpoints(trainer.args.output_dir)
    if trainer.args.mm_projector_warm_start and not whole:
        warm_start(trainer, trainer.args.mm_projector_warm_start)
    with trainer.guard.sigterm:
        trainer.train(resume_from_checkpoint=str(whole[-1]) if whole else None)
    trainer.guard.raise_if_stopped()
    trainer.save_result()
    for dataset in (trainer.train_dataset, *(trainer.eval_dataset or {}).values()):
        for bad in dataset.bad_records:
            logger.warning("left out: %s", bad)
    logger.info("result: %s", trainer.args.output_dir)
    trainer.accelerator.end_training()  # gloo aborts if a process ends within its group
