#!/usr/bin/env bash
# Stage 2 of LLaVA-1.5 with LoRA: adapters of the language model learn, and the projector. Writes the adapters and
# non_lora_trainables.bin; scripts/merge_lora_weights.py merges them into the language model.
#
#   bash scripts/v1_5/finetune_lora.sh [flags of train_mem.py, which override the variables]
#
#   OUTPUT_DIR         playground/checkpoints/$RUN_NAME-lora
#   LORA_R             128               LORA_ALPHA     256
#   LEARNING_RATE      2e-4              PROJECTOR_LR   2e-5
#   RUN_NAME, PRETRAIN_DIR, MODEL, VISION_TOWER, PROJECTOR_TYPE, SCALE_FACTOR, ASPECT_RATIO, VERSION, DATA_PATH,
#   IMAGE_FOLDER, GLOBAL_BATCH_SIZE, BATCH_SIZE, DEEPSPEED_CONFIG: as in finetune.sh
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"

: "${PROJECTOR_TYPE:=visualprism}" "${RUN_NAME:=llava-$PROJECTOR_TYPE}" "${LORA_R:=128}" "${LORA_ALPHA:=256}"
: "${OUTPUT_DIR:=playground/checkpoints/$RUN_NAME-lora}" "${LEARNING_RATE:=2e-4}" "${PROJECTOR_LR:=2e-5}"

set -- --lora_enable True --lora_r "$LORA_R" --lora_alpha "$LORA_ALPHA" "$@"
source "$(dirname "${BASH_SOURCE[0]}")/finetune.sh"
