#!/usr/bin/env bash
# Check this machine before a run of hours: what it has, what works on it, its highest speeds, whether disk and memory
# suffice, and when the run will end. Prints one page and writes playground/preflight/preflight.{json,md}. Each check
# has a time limit, and the other checks run even if one fails.
#
#   bash scripts/preflight.sh [--for v1_5/finetune] [--skip CHECK...] [-- flags of train_mem.py]
#   bash scripts/preflight.sh --gpus 8 --gpu_memory_gib 80    the memory budget of another machine
#
# It reads the variables of the script that it checks: MODEL, VISION_TOWER, DATA_PATH, IMAGE_FOLDER, OUTPUT_DIR, ...
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
require_llava
exec "$PYTHON" -m llava.benchmark preflight "$@"
