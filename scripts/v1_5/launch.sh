#!/usr/bin/env bash
# Sourced by the training scripts: `launch FLAGS...` starts train_mem.py with DeepSpeed over all GPUs, or plain Python
# where there is none; `usage FILE` prints a script's own head for --help.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"

usage() {
    sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$1"
}

num_gpus() {
    if command -v nvidia-smi >/dev/null 2>&1; then nvidia-smi --list-gpus 2>/dev/null | wc -l; else echo 0; fi
}

launch() {
    if [ "$(num_gpus)" -gt 0 ]; then
        deepspeed "$ROOT/llava/train/train_mem.py" --deepspeed "$DEEPSPEED_CONFIG" "$@"
    else
        python "$ROOT/llava/train/train_mem.py" "$@"
    fi
}

# Flags that both stages share, from the environment
shared_flags() {
    SHARED=(
        --model_name_or_path "$MODEL"
        --version "$VERSION"
        --data_path "$DATA_PATH"
        --image_folder "$IMAGE_FOLDER"
        --vision_tower "$VISION_TOWER"
        --mm_projector_type "$PROJECTOR_TYPE"
        --scale_factor "$SCALE_FACTOR"
        --mm_vision_select_layer -2
        --mm_use_im_start_end False
        --mm_use_im_patch_token False
        --image_aspect_ratio "$ASPECT_RATIO"
        --output_dir "$OUTPUT_DIR"
        --num_train_epochs "$EPOCHS"
        --max_steps "$MAX_STEPS"
        --per_device_train_batch_size "$BATCH_SIZE"
        --gradient_accumulation_steps "$GRAD_ACCUM"
        --save_strategy steps
        --save_steps "$SAVE_STEPS"
        --save_total_limit 1
        --learning_rate "$LEARNING_RATE"
        --weight_decay 0.
        --warmup_ratio 0.03
        --lr_scheduler_type cosine
        --logging_steps 1
        --model_max_length "$MAX_LENGTH"
        --dataloader_num_workers "$NUM_WORKERS"
        --gradient_checkpointing "$GRADIENT_CHECKPOINTING"
        --report_to none
    )
    if [ -n "$IMAGE_SIZE" ]; then SHARED+=(--mm_vision_image_size "$IMAGE_SIZE"); fi
    case "$PRECISION" in
        bf16) SHARED+=(--bf16 True) ;;
        fp16) SHARED+=(--fp16 True) ;;
        fp32) ;;
        *) echo "PRECISION must be bf16, fp16 or fp32, got '$PRECISION'." >&2; exit 2 ;;
    esac
}
