#!/usr/bin/env bash
# Stage 2 of LLaVA-1.5: projector and language model learn from conversations. Writes a complete model folder.
#
#   bash scripts/v1_5/finetune.sh [flags of train_mem.py, which win over the variables]
#
#   MODEL              lmsys/vicuna-7b-v1.5
#   VISION_TOWER       openai/clip-vit-large-patch14-336
#   PROJECTOR_TYPE     visualprism; recommended: visualprism_v2 (docs/ablation.md)
#   SCALE_FACTOR       2 (144 tokens; 3: 64, 4: 36)
#   RUN_NAME           llava-$PROJECTOR_TYPE
#   PRETRAIN_DIR       playground/checkpoints/$RUN_NAME-pretrain, where pretrain.sh left mm_projector.bin
#   OUTPUT_DIR         playground/checkpoints/$RUN_NAME
#   DATA_PATH          playground/data/llava_v1_5_mix665k.json
#   IMAGE_FOLDER       playground/data
#   GLOBAL_BATCH_SIZE  128               BATCH_SIZE     16
#   LEARNING_RATE      2e-5              VERSION        v1, or the one that a MODEL which sees was trained with
#   ASPECT_RATIO       pad               DEEPSPEED_CONFIG  auto; without a budget scripts/zero3.json
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"

: "${MODEL:=lmsys/vicuna-7b-v1.5}" "${VISION_TOWER:=openai/clip-vit-large-patch14-336}"
: "${PROJECTOR_TYPE:=visualprism}" "${SCALE_FACTOR:=2}" "${ASPECT_RATIO:=pad}"
: "${RUN_NAME:=llava-$PROJECTOR_TYPE}" "${OUTPUT_DIR:=playground/checkpoints/$RUN_NAME}"
: "${PRETRAIN_DIR:=playground/checkpoints/$RUN_NAME-pretrain}"
: "${DATA_PATH:=playground/data/llava_v1_5_mix665k.json}" "${IMAGE_FOLDER:=playground/data}"
: "${GLOBAL_BATCH_SIZE:=128}" "${BATCH_SIZE:=16}" "${GROUP_BY_MODALITY_LENGTH:=True}"
default_rate 2e-5

# The regulariser's published settings for stage 2, should --use_sinkhorn_lsd follow
launch zero3 --pretrain_mm_mlp_adapter "$PRETRAIN_DIR/mm_projector.bin" \
  --sinkhorn_beta 0.2 --sinkhorn_tau_sd 2.0 --sinkhorn_lambda 0.1 --sinkhorn_iters 20 "$@"
