#!/usr/bin/env bash
# Stage 1: the projector learns from captions, all else is frozen. Writes mm_projector.bin and config.json.
#
#   bash scripts/v1_5/pretrain.sh [flags of train_mem.py, which win over those below]
#
# Environment variables, with their defaults:
#   MODEL            lmsys/vicuna-7b-v1.5
#   VISION_TOWER     openai/clip-vit-large-patch14-336
#   DATA_PATH        playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json
#   IMAGE_FOLDER     playground/data/LLaVA-Pretrain/images
#   OUTPUT_DIR       playground/checkpoints/llava-visualprism-pretrain
#   PROJECTOR_TYPE   visualprism      SCALE_FACTOR  2 (144 tokens; 3: 64, 4: 36)
#   IMAGE_SIZE       the tower's own, in pixels       ASPECT_RATIO  square
#   VERSION          plain            EPOCHS  1       MAX_STEPS  -1 (all of the epochs)
#   BATCH_SIZE       32 a device      GRAD_ACCUM  1   LEARNING_RATE  1e-3
#   MAX_LENGTH       2048 tokens      PRECISION  bf16 (or fp16, fp32)
#   NUM_WORKERS      4                SAVE_STEPS  24000
#   GRADIENT_CHECKPOINTING  True      DEEPSPEED_CONFIG  scripts/zero2.json
#
# All GPUs of the machine are used through DeepSpeed; a machine without one trains in plain Python.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
case "${1:-}" in -h | --help) usage "${BASH_SOURCE[0]}"; exit 0 ;; esac

: "${MODEL:=lmsys/vicuna-7b-v1.5}"
: "${VISION_TOWER:=openai/clip-vit-large-patch14-336}"
: "${DATA_PATH:=playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json}"
: "${IMAGE_FOLDER:=playground/data/LLaVA-Pretrain/images}"
: "${OUTPUT_DIR:=playground/checkpoints/llava-visualprism-pretrain}"
: "${PROJECTOR_TYPE:=visualprism}" "${SCALE_FACTOR:=2}" "${IMAGE_SIZE:=}" "${ASPECT_RATIO:=square}"
: "${VERSION:=plain}" "${EPOCHS:=1}" "${MAX_STEPS:=-1}" "${BATCH_SIZE:=32}" "${GRAD_ACCUM:=1}"
: "${LEARNING_RATE:=1e-3}" "${MAX_LENGTH:=2048}" "${PRECISION:=bf16}" "${NUM_WORKERS:=4}" "${SAVE_STEPS:=24000}"
: "${GRADIENT_CHECKPOINTING:=True}" "${DEEPSPEED_CONFIG:=$ROOT/scripts/zero2.json}"

shared_flags
launch "${SHARED[@]}" --tune_mm_mlp_adapter True "$@"
