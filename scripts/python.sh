#!/usr/bin/env bash
# Sourced by every script that runs Python. Sets PYTHON to the interpreter: the one it names already, else that of the
# active environment, else that of the .venv that quickstart.sh makes at the repository's root, else python or python3.
set -euo pipefail

choose_python() {  # sets PYTHON_IS to chosen here, or given by the user
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

require_llava() {  # ends the script unless the interpreter that was chosen here finds this package and what it needs
  local code=0
  [[ $PYTHON_IS == chosen ]] || return 0
  "$PYTHON" -c 'import sys
from importlib.util import find_spec
sys.exit(3 * (None in map(find_spec, ("llava", "torch", "transformers"))))' > /dev/null 2>&1 || code=$?
  if ((code == 3 || code == 127)); then  # 127: there is no such command
    echo "error: $PYTHON lacks llava or what it needs. Run 'bash scripts/quickstart.sh', activate the environment that" \
      "has it, or run 'pip install -e .' in this one." >&2
    exit 1
  fi
}

[[ -n ${PYTHON_IS:-} ]] || choose_python  # a script may be sourced by another one
