#!/usr/bin/env bash
# Stage 1 of LLaVA-1.0: a linear projector learns from captions, all else is frozen. Writes mm_projector.bin,
# config.json. LLaVA-1.5's is v1_5/pretrain.sh.
#
#   bash scripts/pretrain.sh [flags of train_mem.py, which win over the variables]
#
#   MODEL_VERSION      vicuna-7b-v1.3    MODEL          lmsys/$MODEL_VERSION
#   PROMPT_VERSION     plain             VISION_TOWER   openai/clip-vit-large-patch14
#   PROJECTOR_TYPE     linear; SCALE_FACTOR matters to those that compress
#   RUN_NAME           llava-$MODEL_VERSION; finetune.sh with the same name goes on from here
#   OUTPUT_DIR         playground/checkpoints/$RUN_NAME-pretrain
#   DATA_PATH          playground/data/LLaVA-CC3M-Pretrain-595K/chat.json
#   IMAGE_FOLDER       playground/data/LLaVA-CC3M-Pretrain-595K/images
#   GLOBAL_BATCH_SIZE  128               BATCH_SIZE     16
#   LEARNING_RATE      2e-3              DEEPSPEED_CONFIG  auto; without a budget scripts/zero2.json
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

: "${MODEL_VERSION:=vicuna-7b-v1.3}" "${MODEL:=lmsys/$MODEL_VERSION}" "${PROMPT_VERSION:=plain}"
: "${VISION_TOWER:=openai/clip-vit-large-patch14}" "${PROJECTOR_TYPE:=linear}" "${VERSION:=$PROMPT_VERSION}"
: "${RUN_NAME:=llava-$MODEL_VERSION}" "${OUTPUT_DIR:=playground/checkpoints/$RUN_NAME-pretrain}"
: "${DATA_PATH:=playground/data/LLaVA-CC3M-Pretrain-595K/chat.json}"
: "${IMAGE_FOLDER:=playground/data/LLaVA-CC3M-Pretrain-595K/images}"
: "${GLOBAL_BATCH_SIZE:=128}" "${BATCH_SIZE:=16}"
default_rate 2e-3

launch zero2 --tune_mm_mlp_adapter True "$@"
