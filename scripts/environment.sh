#!/usr/bin/env bash
# Sourced by quickstart.sh, ablation.sh and the test scripts from the repository's root: activates a Python environment
# that has this package. An environment that is already active is used; otherwise $PYTHON (python3) makes .venv here.
# After the installation, nothing is done and no network is used until pyproject.toml changes. If unbundle.sh has made
# playground/wheels, all packages come from there, and no network is used at all.
#
#   source scripts/environment.sh EXTRAS     extras of pyproject.toml, separated by commas
set -euo pipefail

# torch is installed first, in this exact version: pip then takes a CPU build if its index has one. From a range of
# versions it would take the newest, with CUDA.
TORCH_VERSION=2.13.0
WHEELS=playground/wheels

_check_python() {  # COMMAND: must be Python 3.10 or newer, and the version that the bundle is for, if there is one
  local version bundled
  version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 10))') || {
    echo "error: $1 is ${version:-not Python}, but 3.10 or newer is needed; set PYTHON=/path/to/python3.x" >&2
    return 1
  }
  [[ -d $WHEELS ]] || return 0
  bundled=$(sed -n '1s/^# Python \([0-9.]*\),.*/\1/p' "$WHEELS"/llava-*.sha256)
  if [[ $version != "$bundled" ]]; then
    echo "error: $WHEELS is for Python $bundled, but $1 is $version; set PYTHON=/path/to/python$bundled, activate an" \
      "environment with that version, or pack again with --python $version" >&2
    return 1
  fi
}

_lacks_torch() { [[ -d $WHEELS ]] && ! compgen -G "$WHEELS/torch-*.whl" > /dev/null; }  # then the machine has it

_install() {  # EXTRAS: installs torch if it is missing, then the package together with the extras
  local stamp wanted
  stamp=$(python -c 'import sys; print(sys.prefix)')/.llava-installed-${1//,/-}
  wanted=$({ cat pyproject.toml; echo "$1 $PWD"; } | cksum)
  [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]] || return 0
  if ! python -c 'import importlib.metadata as m, torch; m.version("torch")' 2> /dev/null; then
    if _lacks_torch; then
      echo "error: neither $(command -v python) nor $WHEELS has torch; activate an environment with torch, or remove" \
        ".venv and set PYTHON to an interpreter with torch" >&2
      return 1
    fi
    python -m pip install "torch==$TORCH_VERSION"
  fi
  python -m pip install --editable ".[$1]"
  echo "$wanted" > "$stamp"  # last, so that an interrupted installation continues next time
}

if [[ -z ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} ]]; then
  if ! .venv/bin/python -m pip --version > /dev/null 2>&1; then  # absent, or incomplete after an interruption
    _check_python "${PYTHON:-python3}"
    venv=(-m venv)
    if _lacks_torch; then venv+=(--system-site-packages); fi
    "${PYTHON:-python3}" "${venv[@]}" .venv
  fi
  source .venv/bin/activate
fi
_check_python python
export PYTHON=python  # scripts started from here use the environment's Python, not the one that made .venv
export PIP_DISABLE_PIP_VERSION_CHECK=1
if [[ -d $WHEELS ]]; then export PIP_NO_INDEX=1 PIP_FIND_LINKS=$WHEELS HF_HUB_OFFLINE=1; fi
_install "$1"
