#!/usr/bin/env bash
# Stage 1 of LLaVA-1.5: the projector learns from captions; all else is frozen. Writes mm_projector.bin, config.json.
#
#   bash scripts/v1_5/pretrain.sh [flags of train_mem.py, which override the variables]
#
#   MODEL              lmsys/vicuna-7b-v1.5
#   VISION_TOWER       openai/clip-vit-large-patch14-336
#   PROJECTOR_TYPE     visualprism; recommended: visualprism_v2 (docs/ablation.md)
#   SCALE_FACTOR       2 (144 tokens; 3: 64, 4: 36)
#   RUN_NAME           llava-$PROJECTOR_TYPE; finetune.sh with the same name continues from here
#   OUTPUT_DIR         playground/checkpoints/$RUN_NAME-pretrain
#   DATA_PATH          playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json
#   IMAGE_FOLDER       playground/data/LLaVA-Pretrain/images
#   GLOBAL_BATCH_SIZE  256               BATCH_SIZE     32
#   LEARNING_RATE      1e-3              VERSION        plain
#   ASPECT_RATIO       square            DEEPSPEED_CONFIG  auto; scripts/zero2.json if there is no budget
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"

: "${MODEL:=lmsys/vicuna-7b-v1.5}" "${VISION_TOWER:=openai/clip-vit-large-patch14-336}"
: "${PROJECTOR_TYPE:=visualprism}" "${SCALE_FACTOR:=2}" "${ASPECT_RATIO:=square}" "${VERSION:=plain}"
: "${RUN_NAME:=llava-$PROJECTOR_TYPE}" "${OUTPUT_DIR:=playground/checkpoints/$RUN_NAME-pretrain}"
: "${DATA_PATH:=playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json}"
: "${IMAGE_FOLDER:=playground/data/LLaVA-Pretrain/images}"
: "${GLOBAL_BATCH_SIZE:=256}" "${BATCH_SIZE:=32}"
default_rate 1e-3

# The Sinkhorn regulariser's published settings for stage 1, used only with --use_sinkhorn_lsd
launch zero2 --tune_mm_mlp_adapter True --sinkhorn_beta 0.5 --sinkhorn_tau_sd 2.2 --sinkhorn_lambda 0.12 \
  --sinkhorn_iters 16 "$@"
