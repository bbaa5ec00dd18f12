#!/usr/bin/env bash
# Q-Bench: accuracy on dev, or the file to submit for test.
#
#   bash scripts/v1_5/eval/qbench.sh [dev|test] [flags of llava.eval.run]
source "$(dirname "${BASH_SOURCE[0]}")/evaluate.sh"

evaluate_split qbench dev "$@"
