#!/usr/bin/env bash
# Ahead of a run of hours: what this machine has, what works on it, its ceilings, whether disk and memory suffice, and
# when the run will end. One page in the terminal, and playground/preflight/preflight.{json,md}. Every check has a limit
# of time and none ends the page.
#
#   bash scripts/preflight.sh [--for v1_5/finetune] [--skip CHECK...] [-- flags of train_mem.py]
#   bash scripts/preflight.sh --gpus 8 --gpu_memory_gib 80    the memory of another machine
#
# It takes the variables of the script that it is for: MODEL, VISION_TOWER, DATA_PATH, IMAGE_FOLDER, OUTPUT_DIR, ...
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
require_llava
exec "$PYTHON" -m llava.benchmark preflight "$@"
