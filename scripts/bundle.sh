#!/usr/bin/env bash
# Pack what a machine without a network needs, into pieces that can be carried there one by one: the wheels that it
# lacks, and the packages with the vision tower, the language model and the questions (docs/offline.md).
#
#   bash scripts/bundle.sh --pieces 55 --python 3.12 --installed installed.txt
#
#   --pieces MB         largest size of a piece, in millions of bytes (55)
#   --python VERSION    Python version of that machine (this one's)
#   --platform NAME     platform of that machine (manylinux_2_28_x86_64: `ldd --version` there prints 2.28 or newer)
#   --installed FILE    output of `python -m pip list --format=freeze` there; these packages are not packed or replaced.
#                       Without this file, everything is packed, including torch
#   --extras NAMES      extras of pyproject.toml, separated by commas (quickstart,train,benchmark)
#   --output FOLDER     folder to write (playground/bundle); an earlier bundle there is replaced
#
# PYTHON is the interpreter whose pip downloads: by default the active environment's, .venv's or python. Needs GNU tar.
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() {
  echo "error: $*" >&2
  exit 1
}

source scripts/python.sh
source scripts/parts.sh
pieces=55 platform=manylinux_2_28_x86_64 extras=quickstart,train,benchmark output=playground/bundle installed=()
python=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
while (($#)); do
  [[ -n ${2:-} ]] || die "$1 needs a value; see bash scripts/bundle.sh --help"
  case $1 in
    --pieces) pieces=$2 ;;
    --python) python=$2 ;;
    --platform) platform=$2 ;;
    --installed) installed=(--installed "$2") ;;
    --extras) extras=$2 ;;
    --output) output=${2%/} ;;
    *) die "unknown argument $1; see bash scripts/bundle.sh --help" ;;
  esac
  shift 2
done
[[ $pieces =~ ^[1-9][0-9]*$ ]] || die "--pieces must be a whole number of megabytes above 0, got '$pieces'."
if [[ -n $(ls -A "$output" 2> /dev/null) && -z $(ls "$output"/llava-*.sha256 2> /dev/null) ]]; then
  die "$output contains files that are not a bundle; choose another --output."
fi

work=$output.tmp contents=$output.tmp/contents
rm -rf "$work"
mkdir -p "$contents" "$work/bundle"
trap 'rm -rf "$work"' EXIT

echo "[1/3] Wheels for Python $python on $platform"
PYTHONPATH=$PWD "$PYTHON" scripts/bundle_wheels.py --extras "$extras" --python "$python" --platform "$platform" \
  --torch "$(sed -n 's/^TORCH_VERSION=//p' scripts/environment.sh)" "${installed[@]}" --output "$contents/wheels"

echo "[2/3] Vision tower, language model and questions"
DOWNLOADS=$contents/downloads PACKAGES=$work/packages  # unpacked only to check that they are complete
fetch_vision_tower
fetch_language_model
fetch_questions
rm -r "$PACKAGES"

echo "[3/3] Pieces of at most $pieces MB"
sizes() { find "$@" -type f -printf '# %s %P\n' | LC_ALL=C sort -k 3; }
# Equal contents give equal names and pieces, so that a lost piece can be packed again.
name=llava-$(cd "$contents" && find . -type f -exec sha256sum {} + | LC_ALL=C sort | sha256sum | cut -c -8)
manifest=$work/bundle/$name.sha256
{
  echo "# Python $python, $platform, extras $extras"
  sizes "$contents"
} > "$work/manifest"
tar --create --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
  --directory "$contents" downloads wheels |
  split --bytes="${pieces}MB" --numeric-suffixes=1 --suffix-length=4 - "$work/bundle/$name."
rm -r "$contents"
{
  cat "$work/manifest"
  sizes "$work/bundle"
  (cd "$work/bundle" && sha256sum "$name".*)
  echo "# end"  # a manifest without this line was cut short
} > "$work/whole" && mv "$work/whole" "$manifest"
rm -rf "$output"
mv "$work/bundle" "$output"

for kind in downloads/ wheels/ llava-; do
  awk -v kind="$kind" 'index($3, kind) == 1 { files++; bytes += $2 }
    END { printf "      %-10s %3d files %9.1f MB\n", kind, files, bytes / 1e6 }' "$output/$name.sha256"
done
echo "Done in $SECONDS s: $output; $name.sha256 lists its files. Copy them to the other machine, and run there"
echo "  bash scripts/unbundle.sh PIECES..."
