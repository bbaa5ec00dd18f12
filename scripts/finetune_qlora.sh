#!/usr/bin/env bash
# Stage 2 of LLaVA-1.0 with QLoRA: like finetune_lora.sh, but the language model's weights are held in 4 bits.
#
#   bash scripts/finetune_qlora.sh [flags of train_mem.py, which override the variables]
#
#   BITS               4, or 8
#   OUTPUT_DIR         playground/checkpoints/$RUN_NAME-finetune_qlora
#   LORA_R, LORA_ALPHA: as in finetune_lora.sh; MODEL_VERSION, PROMPT_VERSION, VISION_TOWER, PROJECTOR_TYPE, RUN_NAME,
#   PRETRAIN_DIR, DATA_PATH, IMAGE_FOLDER, GLOBAL_BATCH_SIZE, BATCH_SIZE, LEARNING_RATE: as in finetune.sh
#   DEEPSPEED_CONFIG   auto, which is scripts/zero2.json, because ZeRO-3 cannot partition quantised weights
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

: "${MODEL_VERSION:=vicuna-7b-v1.3}" "${RUN_NAME:=llava-$MODEL_VERSION}"
: "${OUTPUT_DIR:=playground/checkpoints/$RUN_NAME-finetune_qlora}"

set -- --bits "${BITS:=4}" "$@"
source "$(dirname "${BASH_SOURCE[0]}")/finetune_lora.sh"
