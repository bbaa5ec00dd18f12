"""Flags of transformers' Trainer that have no effect here or a misleading one, and why they are refused."""

import dataclasses

from llava.errors import UserError

EVALUATION = "has no effect, because an evaluation only adds up losses and counts"
SCHEDULE = "is not supported: the learning rate depends only on the step, so that a resumed run has the same"
HUB = "has no effect, because a run uploads nothing; upload --output_dir when the run is complete"
LAYERS = "needs parameters grouped by layer, but here they are grouped by part, each with its learning rate"
RESUMES = "the same command continues from the last checkpoint in --output_dir by itself"

# Maps a flag that is refused with any value but its default, or "flag value", to the reason.
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            *("eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object"),
            *("batch_eval_metrics", "bf16_full_eval", "fp16_full_eval", "prediction_loss_only"),
            "include_for_metrics",
        ),
        EVALUATION,
    ),
    **dict.fromkeys(("lr_scheduler_type reduce_lr_on_plateau", "lr_scheduler_type greedy"), SCHEDULE),
    "do_eval": "has no effect; --eval_strategy says when to evaluate on --eval_data_path",
    "do_predict": "has no effect; score the result with python -m llava.eval.run",
    "save_strategy best": "would lose all steps after the best one if the run is killed; "
    "--load_best_model_at_end True keeps the best checkpoint and the newest",
    **dict.fromkeys(
        (
            *("push_to_hub", "hub_model_id", "hub_token", "hub_strategy", "hub_private_repo"),
            *("hub_always_push", "hub_revision"),
        ),
        HUB,
    ),
    **dict.fromkeys(
        (
            *("optim_target_modules", "optim galore_adamw", "optim galore_adamw_8bit"),
            *("optim galore_adafactor", "optim galore_adamw_layerwise", "optim galore_adafactor_layerwise"),
            *("optim galore_adamw_8bit_layerwise", "optim apollo_adamw", "optim apollo_adamw_layerwise"),
            *("optim lomo", "optim adalomo"),
        ),
        LAYERS,
    ),
    "label_smoothing_factor": "needs all logits at once, but the loss computes them part by part",
    "label_names": "has no effect, because the labels are made from the records' answers",
    "remove_unused_columns": "would remove fields that the collator needs",
    "length_column_name": "has no effect, because lengths are counted from the records",
    "train_sampling_strategy batch_rebalance": "would read every image before the first step; use "
    "--group_by_modality_length True or --packing True",
    "data_seed": "has no effect, because --seed decides the order of the records",
    "include_num_input_tokens_seen": "would count an image as one token; metrics.jsonl has the text "
    "and visual tokens per second",
    "auto_find_batch_size": "would change the global batch without a message; halve "
    "--per_device_train_batch_size and double --gradient_accumulation_steps",
    "accelerator_config": "would distribute batches in another way than the samplers require",
    "resume_from_checkpoint": f"has no effect: {RESUMES}",
    "enable_jit_checkpoint": f"would write a second checkpoint: SIGTERM already saves one, and {RESUMES}",
    "save_on_each_node": "would leave incomplete checkpoints, because only rank 0 gives them their "
    "final name; use a folder that all nodes share",
    **dict.fromkeys(
        ("fsdp", "fsdp_config"), "is not supported; --deepspeed scripts/zero3.json partitions the weights"
    ),
}


def check_refused(arguments) -> None:
    """Check the dataclass of training arguments from the command line.

    Raises:
        UserError: for a flag or a value of REFUSED, with the reason.
    """
    for field in dataclasses.fields(arguments):
        value = getattr(arguments, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if value == default or (default == "no" and value is False):  # the parser may read "no" as False
            continue
        given = f"{field.name} {getattr(value, 'value', value)}"
        for name in (field.name, given):
            if name in REFUSED:
                raise UserError(f"--{name} {REFUSED[name]}. Leave it out.")
