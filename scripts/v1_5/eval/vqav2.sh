#!/usr/bin/env bash
# VQAv2: answers to test-dev, and the file for the evaluation server.
#
#   bash scripts/v1_5/eval/vqav2.sh [flags of llava.eval.run]
source "$(dirname "${BASH_SOURCE[0]}")/evaluate.sh"

evaluate vqav2 "$@"
