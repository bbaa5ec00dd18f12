#!/usr/bin/env bash
# Stage 2 of LLaVA-1.0, its short schedule: projector and language model learn from 80K conversations, once. Writes a
# complete model folder. LLaVA-1.5's is v1_5/finetune.sh.
#
#   bash scripts/finetune.sh [flags of train_mem.py, which win over the variables]
#
#   MODEL_VERSION      vicuna-7b-v1.3    MODEL          lmsys/$MODEL_VERSION
#   PROMPT_VERSION     as VERSION below  VISION_TOWER   openai/clip-vit-large-patch14
#   PROJECTOR_TYPE     linear; SCALE_FACTOR matters to those that compress
#   RUN_NAME           llava-$MODEL_VERSION
#   PRETRAIN_DIR       playground/checkpoints/$RUN_NAME-pretrain, where pretrain.sh left mm_projector.bin
#   OUTPUT_DIR         playground/checkpoints/$RUN_NAME-finetune
#   DATA_PATH          playground/data/llava_instruct_80k.json
#   IMAGE_FOLDER       playground/data/coco/train2017
#   GLOBAL_BATCH_SIZE  128               BATCH_SIZE     16
#   LEARNING_RATE      2e-5              DEEPSPEED_CONFIG  auto; without a budget scripts/zero2.json
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

: "${MODEL_VERSION:=vicuna-7b-v1.3}" "${MODEL:=lmsys/$MODEL_VERSION}"
: "${VISION_TOWER:=openai/clip-vit-large-patch14}" "${PROJECTOR_TYPE:=linear}" "${VERSION:=${PROMPT_VERSION:-}}"
: "${RUN_NAME:=llava-$MODEL_VERSION}" "${OUTPUT_DIR:=playground/checkpoints/$RUN_NAME-finetune}"
: "${PRETRAIN_DIR:=playground/checkpoints/$RUN_NAME-pretrain}"
: "${DATA_PATH:=playground/data/llava_instruct_80k.json}" "${IMAGE_FOLDER:=playground/data/coco/train2017}"
: "${GLOBAL_BATCH_SIZE:=128}" "${BATCH_SIZE:=16}"
default_rate 2e-5

launch zero2 --pretrain_mm_mlp_adapter "$PRETRAIN_DIR/mm_projector.bin" "$@"
