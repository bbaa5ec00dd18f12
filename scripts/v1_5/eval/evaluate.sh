#!/usr/bin/env bash
# Variables of every evaluation script:
#   MODEL_PATH            playground/checkpoints/$CKPT: the model's folder
#   CKPT                  llava-visualprism
#   MODEL_BASE            language model, if MODEL_PATH is a projector or LoRA folder
#   DATA_ROOT             playground/data/eval, in the layout of LLaVA-1.5's docs/Evaluation.md
#   OUTPUT_DIR            playground/eval/MODEL: answers, submissions and report.html
#   SCALE_FACTOR          the model's own
#   CONV_MODE             the model's own
#   CUDA_VISIBLE_DEVICES  GPUs to use (all), one process each
#   NUM_PROCESSES         that number of processes    PYTHON  the active environment's, or .venv's
# Flags of llava.eval.run may follow: --limit 100, --batch_size 8, ... Started again, it continues where it stopped.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../../common.sh"

evaluate() {  # TASKS, separated by commas, then flags of llava.eval.run
  local tasks=$1 variable command=("$PYTHON")
  shift
  require_llava
  NUM_PROCESSES=${NUM_PROCESSES:-$(num_gpus)}
  if ((NUM_PROCESSES > 1)); then
    command+=(-m torch.distributed.run --standalone --nproc_per_node "$NUM_PROCESSES")
  fi
  command+=(-m llava.eval.run --tasks "$tasks")
  command+=(--model-path "${MODEL_PATH:-playground/checkpoints/${CKPT:-llava-visualprism}}")
  command+=(--data-root "${DATA_ROOT:-playground/data/eval}")
  for variable in model-base:MODEL_BASE output-dir:OUTPUT_DIR scale_factor:SCALE_FACTOR conv-mode:CONV_MODE; do
    local value=${variable#*:}
    [[ -z ${!value:-} ]] || command+=("--${variable%:*}" "${!value}")
  done
  exec "${command[@]}" "$@"
}

evaluate_split() {  # TASK LABELLED, then a script's command line, which may begin with LABELLED (the default) or test
  local task=$1 labelled=$2
  shift 2
  case ${1:-} in
    "$labelled") shift ;;
    test) task+=_test; shift ;;
  esac
  evaluate "$task" "$@"
}
