#!/usr/bin/env bash
# SEED-Bench: accuracy on images and video frames, by type; and the leaderboard's file.
#
#   bash scripts/v1_5/eval/seed.sh [flags of llava.eval.run]
source "$(dirname "${BASH_SOURCE[0]}")/evaluate.sh"

evaluate seed "$@"
