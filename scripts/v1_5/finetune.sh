#!/usr/bin/env bash
# Stage 2: projector and language model learn from conversations. Writes a complete model folder.
#
#   bash scripts/v1_5/finetune.sh [flags of train_mem.py, which win over those below]
#
# Environment variables, with their defaults:
#   PRETRAIN_DIR     playground/checkpoints/llava-visualprism-pretrain (stage 1's OUTPUT_DIR)
#   MODEL            lmsys/vicuna-7b-v1.5
#   VISION_TOWER     openai/clip-vit-large-patch14-336
#   DATA_PATH        playground/data/llava_v1_5_mix665k.json
#   IMAGE_FOLDER     playground/data
#   OUTPUT_DIR       playground/checkpoints/llava-visualprism
#   PROJECTOR_TYPE   visualprism      SCALE_FACTOR  2 (144 tokens; 3: 64, 4: 36)
#   IMAGE_SIZE       the tower's own, in pixels       ASPECT_RATIO  pad
#   VERSION          v1               EPOCHS  1       MAX_STEPS  -1 (all of the epochs)
#   BATCH_SIZE       16 a device      GRAD_ACCUM  1   LEARNING_RATE  2e-5
#   PROJECTOR_LR     the same as LEARNING_RATE
#   MAX_LENGTH       2048 tokens      PRECISION  bf16 (or fp16, fp32)
#   NUM_WORKERS      4                SAVE_STEPS  50000
#   GRADIENT_CHECKPOINTING  True      DEEPSPEED_CONFIG  scripts/zero3.json
#
# All GPUs of the machine are used through DeepSpeed; a machine without one trains in plain Python.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
case "${1:-}" in -h | --help) usage "${BASH_SOURCE[0]}"; exit 0 ;; esac

: "${PRETRAIN_DIR:=playground/checkpoints/llava-visualprism-pretrain}"
: "${MODEL:=lmsys/vicuna-7b-v1.5}"
: "${VISION_TOWER:=openai/clip-vit-large-patch14-336}"
: "${DATA_PATH:=playground/data/llava_v1_5_mix665k.json}"
: "${IMAGE_FOLDER:=playground/data}"
: "${OUTPUT_DIR:=playground/checkpoints/llava-visualprism}"
: "${PROJECTOR_TYPE:=visualprism}" "${SCALE_FACTOR:=2}" "${IMAGE_SIZE:=}" "${ASPECT_RATIO:=pad}"
: "${VERSION:=v1}" "${EPOCHS:=1}" "${MAX_STEPS:=-1}" "${BATCH_SIZE:=16}" "${GRAD_ACCUM:=1}"
: "${LEARNING_RATE:=2e-5}" "${PROJECTOR_LR:=$LEARNING_RATE}" "${MAX_LENGTH:=2048}" "${PRECISION:=bf16}"
: "${NUM_WORKERS:=4}" "${SAVE_STEPS:=50000}" "${GRADIENT_CHECKPOINTING:=True}"
: "${DEEPSPEED_CONFIG:=$ROOT/scripts/zero3.json}"

shared_flags
launch "${SHARED[@]}" --pretrain_mm_mlp_adapter "$PRETRAIN_DIR/mm_projector.bin" \
    --mm_projector_lr "$PROJECTOR_LR" --group_by_modality_length True "$@"
