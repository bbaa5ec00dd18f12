#!/usr/bin/env bash
# MME: points in fourteen tasks of perception and cognition.
#
#   bash scripts/v1_5/eval/mme.sh [flags of llava.eval.run]
source "$(dirname "${BASH_SOURCE[0]}")/evaluate.sh"

evaluate mme "$@"
