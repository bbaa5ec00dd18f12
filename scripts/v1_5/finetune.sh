#!/usr/bin/env bash
# Stage 2 of LLaVA-1.5: the projector and the language model learn from conversations. Writes a complete model folder.
#
#   bash scripts/v1_5/finetune.sh [flags of train_mem.py, which override the variables]
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
#   LEARNING_RATE      2e-5              VERSION        v1, or the one that a multimodal MODEL was trained with
#   ASPECT_RATIO       pad               DEEPSPEED_CONFIG  auto; scripts/zero3.json if there is no budget
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"

: "${MODEL:=lmsys/vicuna-7b-v1.5}" "${VISION_TOWER:=openai/clip-vit-large-patch14-336}"
: "${PROJECTOR_TYPE:=visualprism}" "${SCALE_FACTOR:=2}" "${ASPECT_RATIO:=pad}"
: "${RUN_NAME:=llava-$PROJECTOR_TYPE}" "${OUTPUT_DIR:=playground/checkpoints/$RUN_NAME}"
: "${PRETRAIN_DIR:=playground/checkpoints/$RUN_NAME-pretrain}"
: "${DATA_PATH:=playground/data/llava_v1_5_mix665k.json}" "${IMAGE_FOLDER:=playground/data}"
: "${GLOBAL_BATCH_SIZE:=128}" "${BATCH_SIZE:=16}" "${GROUP_BY_MODALITY_LENGTH:=True}"
default_rate 2e-5

# The Sinkhorn regulariser's published settings for stage 2, used only with --use_sinkhorn_lsd
launch zero3 --pretrain_mm_mlp_adapter "$PRETRAIN_DIR/mm_projector.bin" \
  --sinkhorn_beta 0.2 --sinkhorn_tau_sd 2.0 --sinkhorn_lambda 0.1 --sinkhorn_iters 20 "$@"
