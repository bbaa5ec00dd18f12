#!/usr/bin/env bash
# Measure all GPU figures of README and docs/performance.md, in nine minutes on one H100 or a similar card: machine,
# tests, projectors, whole models and training steps; then the study scripts/ablation/gpu.yaml while there is time.
# The weights are random, and only the study needs a download. Each part writes its JSON as soon as it ends.
#
#   bash scripts/gpu_report.sh [--minutes 9] [--parts NAME...] [--output_dir docs/results/gpu_CARD]
#   bash scripts/gpu_report.sh --docs [--output_dir DIR]   measure nothing; put existing figures into README and docs
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source scripts/python.sh
require_llava
exec "$PYTHON" -m llava.benchmark gpu_report "$@"
