#!/usr/bin/env bash
# GQA: accuracy on testdev-balanced.
#
#   bash scripts/v1_5/eval/gqa.sh [flags of llava.eval.run]
source "$(dirname "${BASH_SOURCE[0]}")/evaluate.sh"

evaluate gqa "$@"
