#!/usr/bin/env bash
# Stage 2 of LLaVA-1.0, full schedule: all 158K conversations for three epochs. Writes a complete model folder.
#
#   bash scripts/finetune_full_schedule.sh [flags of train_mem.py, which override the variables]
#
#   DATA_PATH          playground/data/llava_instruct_150k.json
#   OUTPUT_DIR         playground/checkpoints/$RUN_NAME-finetune_full_schedule
#   EPOCHS             3                 GLOBAL_BATCH_SIZE  32
#   BATCH_SIZE         4
#   MODEL_VERSION, PROMPT_VERSION, VISION_TOWER, PROJECTOR_TYPE, RUN_NAME, PRETRAIN_DIR, IMAGE_FOLDER, LEARNING_RATE,
#   DEEPSPEED_CONFIG: as in finetune.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

: "${MODEL_VERSION:=vicuna-7b-v1.3}" "${RUN_NAME:=llava-$MODEL_VERSION}"
: "${DATA_PATH:=playground/data/llava_instruct_150k.json}" "${EPOCHS:=3}" "${GLOBAL_BATCH_SIZE:=32}"
: "${OUTPUT_DIR:=playground/checkpoints/$RUN_NAME-finetune_full_schedule}" "${BATCH_SIZE:=4}"

source "$(dirname "${BASH_SOURCE[0]}")/finetune.sh"
