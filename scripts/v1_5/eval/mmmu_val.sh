#!/usr/bin/env bash
# MMMU: accuracy on val, by discipline and subject.
#
#   bash scripts/v1_5/eval/mmmu_val.sh [flags of llava.eval.run]
source "$(dirname "${BASH_SOURCE[0]}")/evaluate.sh"

evaluate mmmu "$@"
