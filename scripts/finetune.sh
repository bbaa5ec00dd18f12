#!/usr/bin/env bash
# Stage 2 of LLaVA-1.0, short schedule: the projector and the language model learn from 80K conversations for one epoch.
# Writes a complete model folder. The script for LLaVA-1.5 is v1_5/finetune.sh.
#
#   bash scripts/finetune.sh [flags of train_mem.py, which override the variables]
#
#   MODEL_VERSION      vicuna-7b-v1.3    MODEL          lmsys/$MODEL_VERSION
#   PROMPT_VERSION     as VERSION below  VISION_TOWER   openai/clip-vit-large-patch14
#   PROJECTOR_TYPE     linear; SCALE_FACTOR applies to types that compress
#   RUN_NAME           llava-$MODEL_VERSION
#   PRETRAIN_DIR       playground/checkpoints/$RUN_NAME-pretrain, where pretrain.sh left mm_projector.bin
#   OUTPUT_DIR         playground/checkpoints/$RUN_NAME-finetune
#   DATA_PATH          playground/data/llava_instruct_80k.json
#   IMAGE_FOLDER       playground/data/coco/train2017
#   GLOBAL_BATCH_SIZE  128               BATCH_SIZE     16
#   LEARNING_RATE      2e-5              DEEPSPEED_CONFIG  auto; scripts/zero2.json if there is no budget
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

: "${MODEL_VERSION:=vicuna-7b-v1.3}" "${MODEL:=lmsys/$MODEL_VERSION}"
: "${VISION_TOWER:=openai/clip-vit-large-patch14}" "${PROJECTOR_TYPE:=linear}" "${VERSION:=${PROMPT_VERSION:-}}"
: "${RUN_NAME:=llava-$MODEL_VERSION}" "${OUTPUT_DIR:=playground/checkpoints/$RUN_NAME-finetune}"
: "${PRETRAIN_DIR:=playground/checkpoints/$RUN_NAME-pretrain}"
: "${DATA_PATH:=playground/data/llava_instruct_80k.json}" "${IMAGE_FOLDER:=playground/data/coco/train2017}"
: "${GLOBAL_BATCH_SIZE:=128}" "${BATCH_SIZE:=16}"
default_rate 2e-5

launch zero2 --pretrain_mm_mlp_adapter "$PRETRAIN_DIR/mm_projector.bin" "$@"
