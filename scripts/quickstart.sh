#!/usr/bin/env bash
# Train a VisualPrism model from a fresh clone, score it and draw its heatmaps: one command, no GPU needed, 15 minutes
# on two cores. It uses a DINOv2 ViT-S/14 tower, the chat model SmolLM2-135M and easy-VQA, which packages contain.
# A second run skips what is done. If the command is killed, the same command continues.
#
#   bash scripts/quickstart.sh                       results go to playground/quickstart
#   QUICKSTART_SMOKE=1 bash scripts/quickstart.sh    a few steps and questions, to see whether it all runs
#
# Environment variables besides the sizes below: RUN_DIR, where results go (playground/quickstart); PYTHON, the
# interpreter that makes .venv when no environment is active (python3); PRECISION, bf16 or fp32 (by the hardware).
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# ---- Sizes: what the 15 minutes are spent on -------------------------------------------------------------------
if [[ ${QUICKSTART_SMOKE:-0} == 1 ]]; then
  : "${RUN_DIR:=playground/quickstart_smoke}"
  : "${WARM_START:=40}" "${STAGE1_STEPS:=4}" "${STAGE2_STEPS:=4}" "${NUM_QUESTIONS:=40}"
fi
: "${RUN_DIR:=playground/quickstart}"
: "${IMAGE_SIZE:=168}"          # pixels: a 12x12 grid of 14-pixel patches
: "${PROJECTOR_TYPE:=visualprism_v2}"  # or another type of docs/projectors.md, with learning rates that suit it
: "${SCALE_FACTOR:=2}"          # side of the regions that become one token: 144 -> 36 tokens
: "${WARM_START:=800}"          # images for the fit of the projector to word embeddings before the first step
: "${STAGE1_STEPS:=10}"         # optimiser steps, only the projector, captions
: "${STAGE1_BATCH_SIZE:=8}"     # samples per step
: "${STAGE1_LR:=1e-4}"          # peak learning rate
: "${STAGE2_STEPS:=120}"        # optimiser steps, projector and language model, conversations
: "${STAGE2_BATCH_SIZE:=4}"
: "${STAGE2_LR:=3e-4}"          # the language model's learning rate
: "${STAGE2_PROJECTOR_LR:=1e-4}"
: "${MAX_LENGTH:=512}"          # tokens, image tokens included
: "${SAVE_STEPS:=120}"          # steps between checkpoints: a killed run loses at most this many
: "${NUM_QUESTIONS:=500}"       # the first of the test split's 2,537 open questions
PHOTO_QUESTION="what shape is in the image?"

source scripts/parts.sh
DATA=playground/data/easy_vqa
IMAGE_FOLDER=$PACKAGES/easy_vqa/easy_vqa/data
TIMES=$RUN_DIR/times.tsv
DONE=$RUN_DIR/.done

# ---- How a step runs -------------------------------------------------------------------------------------------
step_now="before the first step"
report_failure() {
  local code=$?
  [[ $code == 0 ]] || echo "Stopped in $step_now (exit code $code). The same command continues from there." >&2
}
trap report_failure EXIT

begin() {  # NUMBER TEXT: announce a step
  step_now="step $1"
  echo
  echo "[$1/8] $2"
}

once() {  # NAME RESULT COMMAND...: run a command once and measure it; a file in $DONE marks it as done
  local name=$1 result=$2
  shift 2
  if [[ -f $DONE/$name && -e $result ]]; then
    echo "      done before: $result"
    return
  fi
  local start=$SECONDS
  python scripts/measure.py --name "$name" --log "$TIMES" -- "$@"
  touch "$DONE/$name"
  echo "      $((SECONDS - start)) s, result: $result"
}

log_time() {  # NAME START: for steps of the shell itself, whose memory is not measured
  local took=$((SECONDS - $2))
  ((took < 3)) || printf '%s\t%s\t\t0\n' "$1" "$took" >> "$TIMES"  # less: the step had been done before
}

precision() {  # bf16 if the hardware multiplies it, otherwise fp32: emulated bf16 is three times slower than fp32
  if have_gpu; then
    python -c 'import torch; c = torch.cuda; print("bf16" if c.is_available() and c.is_bf16_supported() else "fp32")'
  elif grep -qsE 'amx_bf16|avx512_bf16' /proc/cpuinfo; then
    echo bf16
  else
    echo fp32
  fi
}

# ---- The steps -------------------------------------------------------------------------------------------------
mkdir -p "$DONE"

begin 1 "Environment: this package with what it needs, in the active environment or in .venv"
extras=quickstart
if have_gpu; then extras+=,train; fi  # training on GPUs uses DeepSpeed
start=$SECONDS
source scripts/environment.sh "$extras"
log_time environment "$start"
: "${PRECISION:=$(precision)}"
export TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}  # spinning threads are very slow beside other programs
echo "      $(python -c 'import sys; print(sys.prefix)'), training in $PRECISION"

settings=$(for name in IMAGE_SIZE PROJECTOR_TYPE SCALE_FACTOR MAX_LENGTH PRECISION NUM_QUESTIONS WARM_START \
  STAGE1_{STEPS,BATCH_SIZE,LR} STAGE2_{STEPS,BATCH_SIZE,LR,PROJECTOR_LR}; do echo "$name=${!name}"; done)
if [[ -f $RUN_DIR/settings.txt && $(<"$RUN_DIR/settings.txt") != "$settings" ]]; then
  echo "error: $RUN_DIR was made with other settings; remove it, or set RUN_DIR to another folder:" >&2
  diff "$RUN_DIR/settings.txt" <(echo "$settings") >&2 || true
  exit 1
fi
echo "$settings" > "$RUN_DIR/settings.txt"

begin 2 "Fetch: vision tower, language model and questions (190 MB) into $PACKAGES"
start=$SECONDS
fetch_vision_tower
fetch_language_model
fetch_questions
log_time fetch "$start"
echo "      $((SECONDS - start)) s"

begin 3 "Convert: to Hugging Face folders below playground/models and LLaVA records in $DATA"
once convert_vision_tower "$VISION_TOWER" "${CONVERT_VISION_TOWER[@]}"
once convert_language_model "$LANGUAGE_MODEL" "${CONVERT_LANGUAGE_MODEL[@]}"
once convert_questions "$DATA" python scripts/convert_easy_vqa.py --data "$IMAGE_FOLDER" --output "$DATA"

shared=(VISION_TOWER="$VISION_TOWER" MODEL="$LANGUAGE_MODEL" IMAGE_FOLDER="$IMAGE_FOLDER" IMAGE_SIZE="$IMAGE_SIZE"
  PROJECTOR_TYPE="$PROJECTOR_TYPE" SCALE_FACTOR="$SCALE_FACTOR" ASPECT_RATIO=square MODEL_MAX_LENGTH="$MAX_LENGTH"
  PRECISION="$PRECISION" SAVE_STEPS="$SAVE_STEPS" GRAD_ACCUM=1 NUM_WORKERS=0
  GRADIENT_CHECKPOINTING=False)

begin 4 "Stage 1: the projector is fitted to words ($WARM_START pictures) and learns to caption ($STAGE1_STEPS steps)"
once stage1 "$RUN_DIR/stage1/mm_projector.bin" env "${shared[@]}" DATA_PATH="$DATA/pretrain.json" VERSION=plain \
  MAX_STEPS="$STAGE1_STEPS" BATCH_SIZE="$STAGE1_BATCH_SIZE" LEARNING_RATE="$STAGE1_LR" \
  OUTPUT_DIR="$RUN_DIR/stage1" bash scripts/v1_5/pretrain.sh --mm_projector_warm_start "$WARM_START"

begin 5 "Stage 2: projector and language model learn to answer ($STAGE2_STEPS steps)"
once stage2 "$RUN_DIR/stage2/config.json" env "${shared[@]}" DATA_PATH="$DATA/finetune.json" VERSION=qwen_2 \
  MAX_STEPS="$STAGE2_STEPS" BATCH_SIZE="$STAGE2_BATCH_SIZE" LEARNING_RATE="$STAGE2_LR" \
  PROJECTOR_LR="$STAGE2_PROJECTOR_LR" PRETRAIN_DIR="$RUN_DIR/stage1" OUTPUT_DIR="$RUN_DIR/stage2" \
  bash scripts/v1_5/finetune.sh

begin 6 "Evaluate: answer the first $NUM_QUESTIONS open questions of the test split, score them and two baselines"
head -n "$NUM_QUESTIONS" "$DATA/test_questions.jsonl" > "$RUN_DIR/questions.jsonl"
once answers "$RUN_DIR/answers.jsonl" python -m llava.eval.model_vqa_loader --model-path "$RUN_DIR/stage2" \
  --question-file "$RUN_DIR/questions.jsonl" --image-folder "$IMAGE_FOLDER" \
  --answers-file "$RUN_DIR/answers.jsonl" --conv-mode qwen_2 --max_new_tokens 8
once scores "$RUN_DIR/scores.json" python -m llava.eval.eval_easy_vqa --question-file "$RUN_DIR/questions.jsonl" \
  --answers-file "$RUN_DIR/answers.jsonl" --train-question-file "$DATA/train_questions.jsonl" \
  --output "$RUN_DIR/scores.json"

begin 7 "Heatmaps: where the words of an answer attend, on a photograph and on a test picture"
python -c 'import sys; from PIL import Image; from skimage import data; Image.fromarray(data.coffee()).save(sys.argv[1])' \
  "$RUN_DIR/photo.png"
IFS=$'\t' read -r test_image test_question < <(python -c 'import json, sys
row = json.loads(open(sys.argv[1], encoding="utf-8").readline())
print(row["image"], row["text"], sep="\t")' "$RUN_DIR/questions.jsonl")
heatmap() {  # NAME IMAGE QUESTION
  once "heatmap_$1" "$RUN_DIR/heatmap/$1" env MODEL_PATH="$RUN_DIR/stage2" IMAGE_PATH="$2" TEXT="$3" \
    OUTPUT_DIR="$RUN_DIR/heatmap/$1" bash scripts/heatmap.sh --conv_mode qwen_2 --max_new_tokens 8
}
heatmap photograph "$RUN_DIR/photo.png" "$PHOTO_QUESTION"
heatmap test_picture "$IMAGE_FOLDER/$test_image" "$test_question"

begin 8 "Report: accuracy with counts, losses, tokens, heatmaps, samples, times"
python -m llava.eval.quickstart_report --run_dir "$RUN_DIR" --image_folder "$IMAGE_FOLDER"
step_now="the end"
echo
echo "Done in ${SECONDS} s. Open $RUN_DIR/report.html, or read $RUN_DIR/report.md."
echo
echo "Next, in any shell: chat with the model, and draw where the words of its answer attend."
printf '  cd %q\n' "$PWD"
if [[ -n ${VIRTUAL_ENV:-} ]]; then
  printf '  source %q\n' "$VIRTUAL_ENV/bin/activate"
else
  printf '  conda activate %q\n' "$CONDA_PREFIX"
fi
printf '  python -m llava.serve.cli --model-path %q --image-file %q\n' "$RUN_DIR/stage2" "$RUN_DIR/photo.png"
printf '  MODEL_PATH=%q IMAGE_PATH=%q TEXT="%s" bash scripts/heatmap.sh\n' \
  "$RUN_DIR/stage2" "$RUN_DIR/photo.png" "$PHOTO_QUESTION"
