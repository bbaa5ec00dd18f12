#!/usr/bin/env bash
# Stage 2 of LLaVA-1.0 with LoRA: adapters of the language model learn, and the projector. Writes the adapters and
# non_lora_trainables.bin. The script for LLaVA-1.5 is v1_5/finetune_lora.sh.
#
#   bash scripts/finetune_lora.sh [flags of train_mem.py, which override the variables]
#
#   OUTPUT_DIR         playground/checkpoints/$RUN_NAME-finetune_lora
#   LORA_R             64                LORA_ALPHA     16
#   MODEL_VERSION, PROMPT_VERSION, VISION_TOWER, PROJECTOR_TYPE, RUN_NAME, PRETRAIN_DIR, DATA_PATH, IMAGE_FOLDER,
#   GLOBAL_BATCH_SIZE, BATCH_SIZE, LEARNING_RATE, DEEPSPEED_CONFIG: as in finetune.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

: "${MODEL_VERSION:=vicuna-7b-v1.3}" "${RUN_NAME:=llava-$MODEL_VERSION}" "${LORA_R:=64}" "${LORA_ALPHA:=16}"
: "${OUTPUT_DIR:=playground/checkpoints/$RUN_NAME-finetune_lora}"

set -- --lora_enable True --lora_r "$LORA_R" --lora_alpha "$LORA_ALPHA" "$@"
source "$(dirname "${BASH_SOURCE[0]}")/finetune.sh"
