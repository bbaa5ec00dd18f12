"""One training stage, as a page: arguments, tokenizer, model, what learns, data, trainer, result."""

import logging
import sys
from functools import partial

import torch
import transformers

from llava.data.collator import Collator
from llava.data.record import BadRecord
from llava.data.sample import SampleBuilder
from llava.model.builder import attach_vision, image_processor_of, read_config, type_of
from llava.model.checkpoint import load_projector, read_projector
from llava.model.tokenizer import load_tokenizer
from llava.tiling import num_positions
from llava.train import saving, trainable
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments, parse, vision_fields
from llava.train.llava_trainer import LlavaTrainer
from llava.train.training_data import load_data

logger = logging.getLogger(__name__)


def load_model(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments):
    """The language model with its tower and projector, frozen and thawed as the flags say.

    What learns stays in float32 and is autocast (DeepSpeed keeps its own float32 masters); what is frozen
    is held in the compute dtype.
    """
    compute_dtype = (
        torch.bfloat16 if training_args.bf16 else torch.float16 if training_args.fp16 else torch.float32
    )
    attention = training_args.attn_implementation
    config = read_config(model_args.model_name_or_path)
    model = type_of(config).from_pretrained(
        model_args.model_name_or_path,
        config=config,
        dtype=compute_dtype if training_args.deepspeed else torch.float32,
        attn_implementation=None if attention == "auto" else attention,
        cache_dir=training_args.cache_dir,
    )
    model.config.use_cache = False
    if model.get_vision_tower() is None:
        if not model_args.vision_tower:
            raise ValueError("--vision_tower is missing: give a folder or a hub name.")
        attach_vision(model, vision_fields(model_args, data_args, training_args))
    else:
        raise ValueError(
            f"--model_name_or_path {model_args.model_name_or_path!r} already sees; "
            "start from a language model."
        )
    if model_args.pretrain_mm_mlp_adapter:
        source = model_args.pretrain_mm_mlp_adapter
        load_projector(model, read_projector(source), source)
    learns = trainable.learning_parts(model_args, training_args)
    trainable.apply(model, learns)
    if not training_args.deepspeed:
        for name, parameter in model.named_parameters():
            if not learns[trainable.part_of(name)]:
                parameter.data = parameter.data.to(compute_dtype)
    return model


def prepare(argv: list[str] | None) -> LlavaTrainer | None:
    """All up to the first step, so that what a user got wrong ends the run here; None for a complete run."""
    model_args, data_args, training_args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if not training_args.should_log:
        logging.getLogger().setLevel(logging.WARNING)
    if saving.is_complete(training_args.output_dir):
        logger.info(
            "%s is complete; remove it or choose another --output_dir to run anew.", training_args.output_dir
        )
        return None
    if training_args.deepspeed:
        import deepspeed

        # Ahead of from_pretrained, which under ZeRO-3 deals the weights out as it reads them
        deepspeed.init_distributed(dist_backend="gloo" if training_args.use_cpu else None)
    transformers.set_seed(training_args.seed)
    tokenizer = load_tokenizer(
        model_args.model_name_or_path, padding_side="right", model_max_length=training_args.model_max_length
    )
    model = load_model(model_args, data_args, training_args)
    if data_args.packing and not model.takes_position_ids:
        raise ValueError(
            f"--packing: {type(model).__name__} cannot count positions anew for each record of a sequence; "
            "leave it out, or take a language model with rotary positions."
        )
    model.initialize_vision_tokenizer(model.config, tokenizer)
    image_processor = image_processor_of(model)
    budgets = model.config.elastic_scale_factors or [None]
    tokens = [model.tokens_per_view(scale_factor) for scale_factor in budgets]
    logger.info("visual tokens a view: %s", tokens)
    builder = SampleBuilder(
        tokenizer,
        image_processor,
        template=model_args.version,
        image_config=model.config,
        visual_positions=partial(num_positions, model.tiling, num_tokens=max(tokens)),
        model_max_length=training_args.model_max_length,
        mm_use_im_start_end=model.config.mm_use_im_start_end,
    )
    dataset = load_data(data_args, training_args, builder)
    return LlavaTrainer(
        model=model,
        args=training_args,
        train_dataset=dataset,
        data_collator=Collator(tokenizer.pad_token_id, padding_side="right"),
        processing_class=tokenizer,
        image_processor=image_processor,
    )


def train(argv: list[str] | None = None) -> None:
    """Run one stage; resumes from its last whole checkpoint, and does nothing where the run is complete.

    Args:
        argv: flags, by default the command line's.
    """
    try:
        trainer = prepare(argv)
    except ValueError as error:
        sys.exit(f"train_mem.py: {error}")
    if trainer is None:
        return
    whole = saving.checkpoints(trainer.args.output_dir)
    try:
        trainer.train(resume_from_checkpoint=str(whole[-1]) if whole else None)
    except BadRecord as error:
        sys.exit(f"train_mem.py: {error}")
    trainer.save_result()
    for bad in trainer.train_dataset.bad_records:
        logger.warning("left out: %s", bad)
    logger.info("result: %s", trainer.args.output_dir)
