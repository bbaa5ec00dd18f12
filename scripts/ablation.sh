#!/usr/bin/env bash
# Rank the projectors: train and score each on PrismVQA by one recipe, and print the tables (docs/ablation.md).
#
#   bash scripts/ablation.sh                       scripts/ablation/cpu.yaml, or gpu.yaml where there is a GPU
#   CONFIG=my.yaml bash scripts/ablation.sh        another study
#   bash scripts/ablation.sh --report_only         the tables of the finished runs; other flags may follow, too
#
# After a stop, the same command continues. The runs are shared out over all GPUs, or those of CUDA_VISIBLE_DEVICES.
# PYTHON is the interpreter that makes .venv when no environment is active (python3).
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source scripts/parts.sh
if [[ -z ${CONFIG:-} ]]; then
  if have_gpu; then CONFIG=scripts/ablation/gpu.yaml; else CONFIG=scripts/ablation/cpu.yaml; fi
fi
source scripts/environment.sh quickstart
export TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
fetch_vision_tower
fetch_language_model
"${CONVERT_VISION_TOWER[@]}"
"${CONVERT_LANGUAGE_MODEL[@]}"
exec python -m llava.benchmark ablation --config "$CONFIG" "$@"
