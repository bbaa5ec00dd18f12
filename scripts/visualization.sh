#!/usr/bin/env bash
# Show how the answer's attention is distributed over the sequence. Writes OUTPUT_DIR/distribution.png, .svg and .npz.
# Further flags of llava.visualization.distribution may follow, e.g. --head 0 --max_new_tokens 16.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
MODEL_PATH="${MODEL_PATH:-playground/quickstart/stage2}"     # model folder
IMAGE_PATH="${IMAGE_PATH:-playground/quickstart/photo.png}"  # any image
TEXT="${TEXT:-What is in the picture?}"                      # question
OUTPUT_DIR="${OUTPUT_DIR:-playground/quickstart/distribution}"
LAYERS="${LAYERS:-}"                                         # decoder layers, e.g. 0,15,-1; empty: all

require_llava
exec "$PYTHON" -m llava.visualization.distribution \
  --model_path "$MODEL_PATH" \
  --image_path "$IMAGE_PATH" \
  --text "$TEXT" \
  --output_dir "$OUTPUT_DIR" \
  ${LAYERS:+--layers="$LAYERS"} \
  "$@"
