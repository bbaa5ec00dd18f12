#!/usr/bin/env bash
# Install what the tests need (once) and run them: no network once installed, and CPU only but for -m gpu.
#
#   bash scripts/test.sh                        every test
#   bash scripts/test.sh --fast                 all but those that start processes, train or take seconds
#   bash scripts/test.sh tests/unit -k merge    arguments go to pytest
#   bash scripts/test.sh -n 0                   in one process; three share the files out otherwise
#   bash scripts/test.sh -m gpu                 tests/gpu, on the first GPU, eight at a time
#
#   PYTHON                interpreter that makes .venv when no environment is active (python3)
#   INSTALL               0: take the active environment or `python` as it is, and install nothing (1)
#   CUDA_VISIBLE_DEVICES  GPUs the tests may see (none; with -m gpu all)
#   CI                    true: install Debian's chromium too, as root, for the test of the web page; elsewhere
#                         that test is skipped unless a Chromium is there
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ ${1:-} == --help ]]; then
  sed -n '2,/^set /s/^# \{0,1\}//p' scripts/test.sh
  exit
fi

# Three for two cores, for many tests wait for what they start; the files with the longest tests come first
on_gpu=0 pytest=(--numprocesses 3 --dist loadfile --no-loadscope-reorder)
if [[ " $* " == *" -m gpu "* ]]; then
  on_gpu=1 pytest=(--numprocesses 8 --dist loadgroup)
  [[ " $* " == *" tests/"* ]] || pytest+=(tests/gpu)  # no other folder has such tests, and all take long to import
elif [[ ${1:-} == --fast ]]; then
  shift
  # Two for two cores, for these tests wait for nothing
  pytest=(--numprocesses 2 --dist loadfile -m "not slow")
  [[ " $* " == *" tests/"* ]] ||  # the other files of tests/e2e have no such test, and take long to import
    pytest+=(tests/unit tests/interface tests/parity tests/e2e/test_training.py)
fi
if [[ ${INSTALL:-1} == 0 ]]; then
  export PYTHON=${PYTHON:-python}
else
  source scripts/environment.sh dev
  # A client whose requirements would bring other versions of torch's packages; dev has those that it needs.
  LMMS_EVAL=0.7.3
  python -c "import importlib.metadata as m; assert m.version('lmms-eval') == '$LMMS_EVAL'" 2> /dev/null ||
    python -m pip install --no-deps "lmms-eval==$LMMS_EVAL" || echo "its tests will be skipped" >&2
fi
if [[ ${CI:-} == true && $EUID == 0 ]] && ! command -v chromium > /dev/null && command -v apt-get > /dev/null; then
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } ||
    echo "no chromium: its test will be skipped" >&2
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # the models are tiny: threads cost more than they give
if ((!on_gpu)); then export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-}; fi
unset PYTHONDONTWRITEBYTECODE  # hundreds of interpreters would compile the package anew
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg
exec "$PYTHON" -m pytest "${pytest[@]}" "$@"
