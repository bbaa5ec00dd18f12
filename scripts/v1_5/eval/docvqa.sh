#!/usr/bin/env bash
# DocVQA: ANLS on val, or the file to submit for test.
#
#   bash scripts/v1_5/eval/docvqa.sh [val|test] [flags of llava.eval.run]
source "$(dirname "${BASH_SOURCE[0]}")/evaluate.sh"

evaluate_split docvqa val "$@"
