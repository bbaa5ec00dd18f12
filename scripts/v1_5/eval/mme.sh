#!/usr/bin/env bash
# MME: points of fourteen tasks, of perception and of cognition.
#
#   bash scripts/v1_5/eval/mme.sh [flags of llava.eval.run]
source "$(dirname "${BASH_SOURCE[0]}")/evaluate.sh"

evaluate mme "$@"
