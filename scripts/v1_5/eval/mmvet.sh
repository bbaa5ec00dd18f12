#!/usr/bin/env bash
# MM-Vet: the file for its evaluator, and scores if a judge is given.
# --judge-url http://localhost:8000/v1 --judge-model NAME chooses the judge; $OPENAI_API_KEY is its key.
#
#   bash scripts/v1_5/eval/mmvet.sh [flags of llava.eval.run]
source "$(dirname "${BASH_SOURCE[0]}")/evaluate.sh"

evaluate mmvet "$@"
