#!/usr/bin/env bash
# POPE: F1 and accuracy of three categories, and their mean.
#
#   bash scripts/v1_5/eval/pope.sh [flags of llava.eval.run]
source "$(dirname "${BASH_SOURCE[0]}")/evaluate.sh"

evaluate pope "$@"
