#!/usr/bin/env bash
# Fine-tune a finished model on the records of a task. The tower, the projector, the number of tokens and the resolution
# are the model's own. Writes a complete model folder.
#
#   bash scripts/v1_5/finetune_task.sh [flags of train_mem.py, which override the variables]
#
#   RUN_NAME           llava-visualprism
#   MODEL              playground/checkpoints/$RUN_NAME, as finetune.sh leaves it; e.g. liuhaotian/llava-v1.5-7b
#   OUTPUT_DIR         playground/checkpoints/$RUN_NAME-task
#   DATA_PATH          playground/data/task/train.json
#   IMAGE_FOLDER       playground/data/task/images
#   GLOBAL_BATCH_SIZE  128               BATCH_SIZE     16
#   LEARNING_RATE      2e-5              VERSION        the one MODEL was trained with
#   DEEPSPEED_CONFIG   auto; scripts/zero3.json if there is no budget
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"

: "${RUN_NAME:=llava-visualprism}" "${MODEL:=playground/checkpoints/$RUN_NAME}"
: "${OUTPUT_DIR:=playground/checkpoints/$RUN_NAME-task}"
: "${DATA_PATH:=playground/data/task/train.json}" "${IMAGE_FOLDER:=playground/data/task/images}"
: "${GLOBAL_BATCH_SIZE:=128}" "${BATCH_SIZE:=16}" "${GROUP_BY_MODALITY_LENGTH:=True}"
default_rate 2e-5

launch zero3 "$@"
