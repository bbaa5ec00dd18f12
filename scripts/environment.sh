#!/usr/bin/env bash
# Sourced by quickstart.sh and test.sh from the repository's root: leaves an active Python environment with this
# package in it. An environment that is already active is used; else .venv is made here with $PYTHON (python3).
# Once installed, nothing is done and no network is used until pyproject.toml changes. Where unbundle.sh left
# playground/wheels, all packages come from there, and no network is used at all.
#
#   source scripts/environment.sh EXTRAS     extras of pyproject.toml, separated by commas
set -euo pipefail

# Exact and first: pip then takes a CPU build where its index has one; a range takes the newest, CUDA and all.
TORCH_VERSION=2.13.0
WHEELS=playground/wheels

_check_python() {  # COMMAND: it must be Python 3.10 or newer, and the one that a bundle is for
  local version bundled
  version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 10))') || {
    echo "error: $1 is ${version:-no Python}, 3.10 or newer is needed; set PYTHON=/path/to/python3.x" >&2
    return 1
  }
  [[ -d $WHEELS ]] || return 0
  bundled=$(sed -n '1s/^# Python \([0-9.]*\),.*/\1/p' "$WHEELS"/llava-*.sha256)
  if [[ $version != "$bundled" ]]; then
    echo "error: $WHEELS is for Python $bundled, and $1 is $version; set PYTHON=/path/to/python$bundled, activate an" \
      "environment that has it, or pack again with --python $version" >&2
    return 1
  fi
}

_lacks_torch() { [[ -d $WHEELS ]] && ! compgen -G "$WHEELS/torch-*.whl" > /dev/null; }  # the machine has one then

_install() {  # EXTRAS: torch if there is none, then the package and the extras at once
  local stamp wanted
  stamp=$(python -c 'import sys; print(sys.prefix)')/.llava-installed-${1//,/-}
  wanted=$({ cat pyproject.toml; echo "$1 $PWD"; } | cksum)
  [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]] || return 0
  if ! python -c 'import importlib.metadata as m, torch; m.version("torch")' 2> /dev/null; then
    if _lacks_torch; then
      echo "error: neither $(command -v python) nor $WHEELS has torch; activate the environment that has it, or remove" \
        ".venv and set PYTHON to the interpreter that has it" >&2
      return 1
    fi
    python -m pip install "torch==$TORCH_VERSION"
  fi
  python -m pip install --editable ".[$1]"
  echo "$wanted" > "$stamp"  # last, so that an interrupted installation goes on next time
}

if [[ -z ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} ]]; then
  if ! .venv/bin/python -m pip --version > /dev/null 2>&1; then  # absent, or interrupted while it was made
    _check_python "${PYTHON:-python3}"
    venv=(-m venv)
    if _lacks_torch; then venv+=(--system-site-packages); fi
    "${PYTHON:-python3}" "${venv[@]}" .venv
  fi
  source .venv/bin/activate
fi
_check_python python
export PYTHON=python  # for the scripts that are started from here: the environment's, not the one that made it
export PIP_DISABLE_PIP_VERSION_CHECK=1
if [[ -d $WHEELS ]]; then export PIP_NO_INDEX=1 PIP_FIND_LINKS=$WHEELS HF_HUB_OFFLINE=1; fi
_install "$1"
