#!/usr/bin/env bash
# Sourced first by scripts whose --help prints the comment at their top. HELP_ALSO: a file whose comment follows it.
set -euo pipefail

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  for script in "$0" ${HELP_ALSO:+"$HELP_ALSO"}; do
    [[ $script == "$0" ]] || echo
    sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$script"
  done
  exit
fi
