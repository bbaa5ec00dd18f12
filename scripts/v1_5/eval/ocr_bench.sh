#!/usr/bin/env bash
# OCRBench: points out of 1000, by kind of text.
#
#   bash scripts/v1_5/eval/ocr_bench.sh [flags of llava.eval.run]
source "$(dirname "${BASH_SOURCE[0]}")/evaluate.sh"

evaluate ocr_bench "$@"
