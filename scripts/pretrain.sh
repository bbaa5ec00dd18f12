#!/usr/bin/env bash
# Stage 1 of LLaVA-1.0: a linear projector learns from captions; everything else is frozen. Writes mm_projector.bin and
# config.json. The script for LLaVA-1.5 is v1_5/pretrain.sh.
#
#   bash scripts/pretrain.sh [flags of train_mem.py, which override the variables]
#
#   MODEL_VERSION      vicuna-7b-v1.3    MODEL          lmsys/$MODEL_VERSION
#   PROMPT_VERSION     plain             VISION_TOWER   openai/clip-vit-large-patch14
#   PROJECTOR_TYPE     linear; SCALE_FACTOR applies to types that compress
#   RUN_NAME           llava-$MODEL_VERSION; finetune.sh with the same name continues from here
#   OUTPUT_DIR         playground/checkpoints/$RUN_NAME-pretrain
#   DATA_PATH          playground/data/LLaVA-CC3M-Pretrain-595K/chat.json
#   IMAGE_FOLDER       playground/data/LLaVA-CC3M-Pretrain-595K/images
#   GLOBAL_BATCH_SIZE  128               BATCH_SIZE     16
#   LEARNING_RATE      2e-3              DEEPSPEED_CONFIG  auto; scripts/zero2.json if there is no budget
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

: "${MODEL_VERSION:=vicuna-7b-v1.3}" "${MODEL:=lmsys/$MODEL_VERSION}" "${PROMPT_VERSION:=plain}"
: "${VISION_TOWER:=openai/clip-vit-large-patch14}" "${PROJECTOR_TYPE:=linear}" "${VERSION:=$PROMPT_VERSION}"
: "${RUN_NAME:=llava-$MODEL_VERSION}" "${OUTPUT_DIR:=playground/checkpoints/$RUN_NAME-pretrain}"
: "${DATA_PATH:=playground/data/LLaVA-CC3M-Pretrain-595K/chat.json}"
: "${IMAGE_FOLDER:=playground/data/LLaVA-CC3M-Pretrain-595K/images}"
: "${GLOBAL_BATCH_SIZE:=128}" "${BATCH_SIZE:=16}"
default_rate 2e-3

launch zero2 --tune_mm_mlp_adapter True "$@"
