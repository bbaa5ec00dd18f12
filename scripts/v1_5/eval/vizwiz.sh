#!/usr/bin/env bash
# VizWiz: answers to test, and the file for the evaluation server.
#
#   bash scripts/v1_5/eval/vizwiz.sh [flags of llava.eval.run]
source "$(dirname "${BASH_SOURCE[0]}")/evaluate.sh"

evaluate vizwiz "$@"
