#!/usr/bin/env bash
# All figures that README and docs/performance.md give of a GPU, in nine minutes on one H100 or its like: machine, tests,
# projectors, whole models, training steps, then the study scripts/ablation/gpu.yaml for as long as there is time.
# Random weights, nothing to download but the study's. Each part writes its JSON as it ends.
#
#   bash scripts/gpu_report.sh [--minutes 9] [--parts NAME...] [--output_dir docs/results/gpu_CARD]
#   bash scripts/gpu_report.sh --docs [--output_dir DIR]   measure nothing: put what is there into README and docs
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source scripts/python.sh
require_llava
exec "$PYTHON" -m llava.benchmark gpu_report "$@"
