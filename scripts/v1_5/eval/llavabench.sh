#!/usr/bin/env bash
# LLaVA-Bench in the wild: answers, and their scores relative to GPT-4's if a judge is given.
# --judge-url http://localhost:8000/v1 --judge-model NAME chooses the judge; $OPENAI_API_KEY is its key.
#
#   bash scripts/v1_5/eval/llavabench.sh [flags of llava.eval.run]
source "$(dirname "${BASH_SOURCE[0]}")/evaluate.sh"

evaluate llava_bench "$@"
