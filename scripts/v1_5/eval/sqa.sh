#!/usr/bin/env bash
# ScienceQA: accuracy on test, for all questions and for those with an image.
#
#   bash scripts/v1_5/eval/sqa.sh [flags of llava.eval.run]
source "$(dirname "${BASH_SOURCE[0]}")/evaluate.sh"

evaluate scienceqa "$@"
