#!/usr/bin/env bash
# Sourced by launch.sh and evaluate.sh: what training and evaluation scripts share.
set -euo pipefail

# --help of the script that was started: its own head, then that of the file that sources this one
if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  for script in "$0" "${BASH_SOURCE[1]}"; do
    sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$script"
    echo
  done
  exit
fi

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"

num_gpus() {  # that this process may use
  local listed visible
  listed=$(nvidia-smi --list-gpus 2> /dev/null | grep -c ^GPU || true)
  if ((listed)) && [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    IFS=, read -ra visible <<< "${CUDA_VISIBLE_DEVICES/#-1*/}"
    listed=${#visible[@]}
  fi
  echo "$listed"
}
