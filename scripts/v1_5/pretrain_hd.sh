#!/usr/bin/env bash
# Stage 1 in high resolution, like TokenPacker-HD: an image is cut into tiles of the tower's input size, and a thumbnail
# is added. The projector learns from captions. Writes mm_projector.bin and config.json.
#
#   bash scripts/v1_5/pretrain_hd.sh [flags of train_mem.py, which override the variables]
#
#   RUN_NAME           llava-$PROJECTOR_TYPE-hd; finetune_hd.sh with the same name continues from here
#   PATCH_NUM          9 tiles at most; or 16 or 25
#   ASPECT_RATIO       slice
#   MODEL_MAX_LENGTH   4096              BATCH_SIZE     8
#   OUTPUT_DIR, MODEL, VISION_TOWER, PROJECTOR_TYPE, SCALE_FACTOR, VERSION, DATA_PATH, IMAGE_FOLDER,
#   GLOBAL_BATCH_SIZE, LEARNING_RATE, DEEPSPEED_CONFIG: as in pretrain.sh
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"

: "${PROJECTOR_TYPE:=visualprism}" "${RUN_NAME:=llava-$PROJECTOR_TYPE-hd}" "${ASPECT_RATIO:=slice}"
: "${PATCH_NUM:=9}" "${MODEL_MAX_LENGTH:=4096}" "${BATCH_SIZE:=8}"

set -- --patch_num "$PATCH_NUM" "$@"
source "$(dirname "${BASH_SOURCE[0]}")/pretrain.sh"
