#!/usr/bin/env bash
# Build the documentation site from docs/ and check it. A warning of Sphinx is an error, and so is a link inside the site
# that leads nowhere. Links to other sites are not fetched. Afterwards open playground/site/index.html.
#
#   bash scripts/docs.sh
#
#   OUTPUT_DIR      folder of the site (playground/site); an earlier site there is replaced
#   REPOSITORY_URL  address of the repository: links of pages to files outside docs/ lead there (none: the files' paths
#                   are shown without links)
#   PYTHON          interpreter that makes .venv when no environment is active (python3)
#   INSTALL         0: use the active environment or `python` as it is, and install nothing (1)
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${OUTPUT_DIR:=playground/site}"
if [[ -n $(ls -A "$OUTPUT_DIR" 2> /dev/null) && ! -f $OUTPUT_DIR/.buildinfo ]]; then
  echo "error: $OUTPUT_DIR holds something else than a site; choose another OUTPUT_DIR." >&2
  exit 1
fi
if [[ ${INSTALL:-1} == 0 ]]; then
  export PYTHON=${PYTHON:-python}
else
  source scripts/environment.sh docs
fi
export CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1  # the reference imports the package, and loads no model
rm -rf "$OUTPUT_DIR"
"$PYTHON" -m sphinx --fail-on-warning --keep-going --quiet docs "$OUTPUT_DIR"
PYTHONPATH=$PWD "$PYTHON" scripts/check_links.py "$OUTPUT_DIR"
