#!/usr/bin/env bash
# Install what the tests need (once) and run them: CPU only, no network once installed.
#
#   bash scripts/test.sh                        every test
#   bash scripts/test.sh tests/unit -k merge    arguments go to pytest
#   bash scripts/test.sh -n 0                   in one process; two share the files out otherwise
#
#   PYTHON                interpreter that makes .venv when no environment is active (python3)
#   CUDA_VISIBLE_DEVICES  GPUs the tests may see (none)
#   CI                    true: install Debian's chromium too, as root, for the test of the web page; elsewhere
#                         that test is skipped unless a Chromium is there
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ ${1:-} == --help ]]; then
  sed -n '2,/^set /s/^# \{0,1\}//p' scripts/test.sh
  exit
fi

source scripts/environment.sh dev
# A client whose requirements would bring other versions of torch's packages; dev has those that it needs.
LMMS_EVAL=0.7.3
python -c "import importlib.metadata as m; assert m.version('lmms-eval') == '$LMMS_EVAL'" 2> /dev/null ||
  python -m pip install --no-deps "lmms-eval==$LMMS_EVAL" || echo "its tests will be skipped" >&2
if [[ ${CI:-} == true && $EUID == 0 ]] && ! command -v chromium > /dev/null && command -v apt-get > /dev/null; then
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } ||
    echo "no chromium: its test will be skipped" >&2
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # the models are tiny: threads cost more than they give
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg
exec python -m pytest --numprocesses 2 --dist loadfile "$@"
