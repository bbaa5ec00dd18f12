#!/usr/bin/env bash
# Show where each word of the answer attends in the image. Writes OUTPUT_DIR/heatmap_layer{L}.png, .svg and heatmap.npz.
# Further flags of llava.visualization.heatmap may follow, e.g. --conv_mode qwen_2 --smooth.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
MODEL_PATH="${MODEL_PATH:-playground/quickstart/stage2}"     # model folder
IMAGE_PATH="${IMAGE_PATH:-playground/quickstart/photo.png}"  # any image
TEXT="${TEXT:-What is in the picture?}"                      # question
OUTPUT_DIR="${OUTPUT_DIR:-playground/quickstart/heatmap}"
LAYERS="${LAYERS:--1}"                                       # decoder layers, e.g. 0,15,-1

require_llava
exec "$PYTHON" -m llava.visualization.heatmap \
  --model_path "$MODEL_PATH" \
  --image_path "$IMAGE_PATH" \
  --text "$TEXT" \
  --output_dir "$OUTPUT_DIR" \
  --layers="$LAYERS" \
  "$@"
