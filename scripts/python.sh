#!/usr/bin/env bash
# Sourced by every script that runs Python. Sets PYTHON to the first interpreter that exists: the one that PYTHON names
# already, the active environment's, that of .venv, which quickstart.sh makes at the repository's root, python, python3.
set -euo pipefail

choose_python() {  # also sets PYTHON_IS: chosen (here) or given (by the user)
  local venv
  venv="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv"
  PYTHON_IS=chosen
  if [[ -n ${PYTHON:-} ]]; then
    PYTHON_IS=given
  elif [[ -z ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} && -x $venv/bin/python ]]; then
    export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH  # as its activate does: DeepSpeed looks for ninja in PATH
    PYTHON=$venv/bin/python
  elif command -v python > /dev/null; then
    PYTHON=python
  else
    PYTHON=python3
  fi
}

require_llava() {  # ends the script if the interpreter that was chosen here lacks this package or its requirements
  local code=0
  [[ $PYTHON_IS == chosen ]] || return 0
  "$PYTHON" -c 'import sys
from importlib.util import find_spec
sys.exit(3 * (None in map(find_spec, ("llava", "torch", "transformers"))))' > /dev/null 2>&1 || code=$?
  if ((code == 3 || code == 127)); then  # 127: the command does not exist
    echo "error: $PYTHON lacks llava or a package that it needs. Run 'bash scripts/quickstart.sh', activate an environment" \
      "that contains the package, or run 'pip install -e .' in this one." >&2
    exit 1
  fi
}

[[ -n ${PYTHON_IS:-} ]] || choose_python  # a sourcing script may have chosen it before
