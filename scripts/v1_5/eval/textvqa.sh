#!/usr/bin/env bash
# TextVQA: soft accuracy on val, with OCR tokens in the prompt.
#
#   bash scripts/v1_5/eval/textvqa.sh [flags of llava.eval.run]
source "$(dirname "${BASH_SOURCE[0]}")/evaluate.sh"

evaluate textvqa "$@"
