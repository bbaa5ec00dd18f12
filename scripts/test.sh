#!/usr/bin/env bash
# Install what the tests need (once) and run them. Afterwards no network is needed. Only -m gpu uses a GPU.
#
#   bash scripts/test.sh                        every test
#   bash scripts/test.sh --fast                 all but those that start processes, train or take seconds
#   bash scripts/test.sh tests/unit -k merge    arguments go to pytest
#   bash scripts/test.sh -n 0                   in one process; by default three share the test files
#   bash scripts/test.sh -m gpu                 tests/gpu, on the first GPU, eight at a time
#   bash scripts/test.sh --oldest               tests that depend on transformers' internals, with the oldest one that
#                                               pyproject.toml allows, installed below playground/oldest
#
#   PYTHON                interpreter that makes .venv when no environment is active (python3)
#   INSTALL               0: use the active environment or `python` as it is, and install nothing (1)
#   CUDA_VISIBLE_DEVICES  GPUs the tests may see (none; with -m gpu all)
#   CI                    true: as root, also install Debian's chromium for the test of the web page, which is
#                         skipped if there is no Chromium; and --oldest fails if its packages cannot be installed,
#                         where it otherwise says so and ends with exit code 0
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

install_oldest() {  # VERSION FOLDER: that transformers, and its requirements that installed versions do not meet
  local wanted
  [[ ! -d $2 ]] || return 0
  wanted=$("$PYTHON" -m pip install --quiet --dry-run --report - "transformers==$1" | "$PYTHON" -c 'import json, sys
for item in json.load(sys.stdin)["install"]: print("{name}=={version}".format(**item["metadata"]))') &&
    rm -rf "$2.tmp" && mkdir -p "$2.tmp" &&
    xargs -r "$PYTHON" -m pip install --quiet --no-deps --target "$2.tmp" <<< "$wanted" && mv "$2.tmp" "$2"
}

oldest=0
if [[ ${1:-} == --oldest ]]; then oldest=1; shift; fi
# Three for two cores, because many tests wait for what they start; the files with the longest tests come first
on_gpu=0 pytest=(--numprocesses 3 --dist loadfile --no-loadscope-reorder)
if [[ " $* " == *" -m gpu "* ]]; then
  on_gpu=1 pytest=(--numprocesses 8 --dist loadgroup)
  [[ " $* " == *" tests/"* ]] || pytest+=(tests/gpu)  # only this folder has such tests; importing others takes long
elif [[ ${1:-} == --fast ]]; then
  shift
  # Two processes for two cores, because these tests wait for nothing
  pytest=(--numprocesses 2 --dist loadfile -m "not slow")
  [[ " $* " == *" tests/"* ]] ||  # the other files of tests/e2e have no such test, and take long to import
    pytest+=(tests/unit tests/interface tests/parity tests/e2e/test_training.py)
fi
if [[ ${INSTALL:-1} == 0 ]]; then
  export PYTHON=${PYTHON:-python}
else
  source scripts/environment.sh dev
  # Installed without its requirements, which would bring other versions of torch's packages. The extra dev has those
  # that it needs.
  LMMS_EVAL=0.7.3
  python -c "import importlib.metadata as m; assert m.version('lmms-eval') == '$LMMS_EVAL'" 2> /dev/null ||
    python -m pip install --no-deps "lmms-eval==$LMMS_EVAL" || echo "its tests will be skipped" >&2
fi
if ((oldest)); then
  version=$(sed -n 's/^ *"transformers>=\([0-9.]*\).*/\1/p' pyproject.toml)
  if ! install_oldest "$version" "playground/oldest/$version"; then
    echo "transformers $version cannot be installed: its tests are left out" >&2
    if [[ ${CI:-} == true ]]; then exit 1; fi
    exit
  fi
  export PYTHONPATH=$PWD/playground/oldest/$version${PYTHONPATH:+:$PYTHONPATH}
  # Only the files with such tests, because importing all others takes long
  pytest+=(--numprocesses 2 -m transformers $(grep -rl --include 'test_*.py' mark.transformers tests))
elif [[ ${CI:-} == true && $EUID == 0 ]] && ! command -v chromium > /dev/null && command -v apt-get > /dev/null; then
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } ||
    echo "no chromium: its test will be skipped" >&2
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # the models are tiny: threads cost more than they save
if ((!on_gpu)); then export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-}; fi
unset PYTHONDONTWRITEBYTECODE  # otherwise hundreds of interpreters would compile the package again
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg
exec "$PYTHON" -m pytest "${pytest[@]}" "$@"
