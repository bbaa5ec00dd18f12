#!/usr/bin/env bash
# MMBench-CN: circular accuracy on dev, and the file for the evaluation server.
#
#   bash scripts/v1_5/eval/mmbench_cn.sh [flags of llava.eval.run]
source "$(dirname "${BASH_SOURCE[0]}")/evaluate.sh"

evaluate mmbench_cn "$@"
