#!/usr/bin/env bash
# Sourced by launch.sh and evaluate.sh: what training and evaluation scripts share.
set -euo pipefail

HELP_ALSO=${BASH_SOURCE[1]}  # the sourcing file: its variables apply to the script that was started, too
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"

num_gpus() {  # the number of GPUs that this process may use
  local listed visible
  listed=$(nvidia-smi --list-gpus 2> /dev/null | grep -c ^GPU || true)
  if ((listed)) && [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    IFS=, read -ra visible <<< "${CUDA_VISIBLE_DEVICES/#-1*/}"
    listed=${#visible[@]}
  fi
  echo "$listed"
}
