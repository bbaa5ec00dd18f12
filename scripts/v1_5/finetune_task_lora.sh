#!/usr/bin/env bash
# Fine-tune a finished model with LoRA on the records of a task. The tower, the projector, the number of tokens and the
# resolution are the model's own. Writes the adapters and non_lora_trainables.bin.
#
#   bash scripts/v1_5/finetune_task_lora.sh [flags of train_mem.py, which override the variables]
#
#   OUTPUT_DIR         playground/checkpoints/$RUN_NAME-task-lora
#   LORA_R             128               LORA_ALPHA     256
#   LEARNING_RATE      2e-4              PROJECTOR_LR   2e-5
#   RUN_NAME, MODEL, VERSION, DATA_PATH, IMAGE_FOLDER, GLOBAL_BATCH_SIZE, BATCH_SIZE, DEEPSPEED_CONFIG: as in
#   finetune_task.sh
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"

: "${RUN_NAME:=llava-visualprism}" "${OUTPUT_DIR:=playground/checkpoints/$RUN_NAME-task-lora}"
: "${LORA_R:=128}" "${LORA_ALPHA:=256}" "${LEARNING_RATE:=2e-4}" "${PROJECTOR_LR:=2e-5}"

set -- --lora_enable True --lora_r "$LORA_R" --lora_alpha "$LORA_ALPHA" "$@"
source "$(dirname "${BASH_SOURCE[0]}")/finetune_task.sh"
