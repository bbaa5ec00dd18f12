#!/usr/bin/env bash
# Restore, without a network, what bundle.sh packed (docs/offline.md). If the pieces cannot all be carried at once, run
# it with those that have arrived, and again with the next ones.
#
#   bash scripts/unbundle.sh PIECES...    llava-XXXXXXXX.NNNN in any order, and llava-XXXXXXXX.sha256, the manifest
#   bash scripts/unbundle.sh              list the missing pieces
#
# Each piece is kept in playground/unbundle (as a hard link if possible) and compared with the manifest; an error names
# each damaged piece. When all pieces are there, the wheels replace those in playground/wheels, the packages go to
# playground/downloads, and playground/unbundle is removed. The given files stay where they are.
#
# Exit code: 0 if all is restored, 3 if pieces are missing, 1 if something was refused.
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ARRIVED=$ROOT/playground/unbundle WHEELS=$ROOT/playground/wheels DOWNLOADS=$ROOT/playground/downloads

refused=0 restored=""
refuse() {
  echo "error: $*" >&2
  refused=1
}

bundle() {  # the name of the bundle that is being collected
  local file
  for file in "$ARRIVED"/llava-*; do
    [[ ! -f $file ]] || basename "${file%.*}"
    return
  done
}

take() {  # FILE: keep this piece, unless it is from another bundle or already here
  local name=${1##*/} begun kept
  kept=$ARRIVED/$name begun=$(bundle)
  if [[ ! -f $1 ]]; then
    refuse "$1 does not exist."
  elif [[ ! $name =~ ^llava-[0-9a-f]{8}\.([0-9]{4}|sha256)$ ]]; then
    refuse "$1 is no piece of a bundle; their names are llava-XXXXXXXX.NNNN and llava-XXXXXXXX.sha256."
  elif [[ -f $WHEELS/${name%.*}.sha256 ]]; then
    restored=${name%.*}
  elif [[ -n $begun && $begun != "${name%.*}" ]]; then
    refuse "$1 is of another bundle than $begun, whose pieces have come before; to give those up, remove $ARRIVED."
  elif [[ $name == *.sha256 && $(tail -n 1 "$1") != "# end" ]]; then
    refuse "$1 is damaged: it was cut short. Bring it again."
  elif [[ ! -f $kept || ! -f $ARRIVED/${name%.*}.sha256 ]]; then  # pieces beside their manifest have been compared
    mkdir -p "$ARRIVED"
    rm -f "$kept.tmp"
    ln -L "$1" "$kept.tmp" 2> /dev/null || cp "$1" "$kept.tmp"
    mv "$kept.tmp" "$kept"
  fi
}

compare() {  # MANIFEST: refuse damaged pieces, and set `missing` to the names of missing pieces
  local sum name came size expected
  missing=()
  while read -r sum name; do
    if [[ -f $ARRIVED/$name ]]; then
      came=$(sha256sum < "$ARRIVED/$name")
      [[ ${came%% *} != "$sum" ]] || continue
      size=$(stat -c %s "$ARRIVED/$name") expected=$(sed -n "s/^# \([0-9]*\) $name\$/\1/p" "$1")
      refuse "$name is damaged: $size bytes with the checksum ${came:0:12}... came, $expected bytes with" \
        "${sum:0:12}... were packed. Bring it again."
      rm "$ARRIVED/$name"
    fi
    missing+=("$name")
  done < <(grep -v '^#' "$1")
}

restore() {  # MANIFEST: unpack in a folder beside, then move; the wheels last, because their folder marks completion
  local work=$ARRIVED/contents
  mkdir "$work"
  grep -v '^#' "$1" | while read -r _ name; do cat "$ARRIVED/$name"; done | tar --extract --no-same-owner --directory "$work"
  cp "$1" "$work/wheels"
  mkdir -p "$DOWNLOADS"
  mv -f "$work/downloads"/* "$DOWNLOADS"
  rm -rf "$WHEELS"
  mv "$work/wheels" "$WHEELS"
}

rm -rf "$ARRIVED/contents" "$ARRIVED"/*.tmp  # left by an interrupted run
for file; do take "$file"; done
name=$(bundle)
if [[ -z $name ]]; then
  if [[ -n $restored ]]; then
    echo "$restored is restored: $WHEELS"
  elif ((!refused)); then
    refuse "no pieces were given; run bash scripts/unbundle.sh PIECES..."
  fi
  exit "$refused"
fi

manifest=$ARRIVED/$name.sha256
if [[ ! -f $manifest ]]; then
  echo "$(find "$ARRIVED" -type f | wc -l) pieces of $name are kept, not checked yet: the manifest $name.sha256 is missing."
  exit $((refused ? 1 : 3))
fi
compare "$manifest"
if ((${#missing[@]})); then
  echo "$(($(grep -vc '^#' "$manifest") - ${#missing[@]})) of $(grep -vc '^#' "$manifest") pieces are there. Missing:"
  printf '  %s\n' "${missing[@]}"
  exit $((refused ? 1 : 3))
fi
restore "$manifest"
echo "$name is restored ($(sed -n '1s/^# //p' "$manifest")): $WHEELS"
rm -r "$ARRIVED"
exit "$refused"
