#!/usr/bin/env bash
# Measure what compression saves and costs on this machine, on its GPU if it has one: projectors; whole models from
# pixels to tokens, compared with transformers' own LLaVA on the same weights; training steps. The weights are random,
# so that nothing is downloaded.
#
#   bash scripts/benchmark.sh [flags of python -m llava.benchmark speed]
#
#   SHAPES           tiny smollm2     measured from pixels to tokens; 1.5b, 7b and 13b are for a GPU
#   STEP_SHAPES      $SHAPES          measured in training steps
#   COUNT_SHAPES     1.5b 7b 13b      only counted: FLOPs and bytes, without weights or timing
#   PROJECTOR_TYPES  all              projectors to measure, separated by commas; none: leave this part out
#   REPEATS          5                rounds; each round measures every row once
#   OUTPUT_DIR       playground/benchmark   *.json, *.md, *.png and *.svg; the tables are also printed
#   DOCS                              a page to put the tables into; it needs places for them, like docs/performance.md
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source scripts/python.sh
require_llava
: "${SHAPES=tiny smollm2}" "${STEP_SHAPES=$SHAPES}" "${COUNT_SHAPES=1.5b 7b 13b}" "${PROJECTOR_TYPES=all}"
: "${REPEATS:=5}" "${OUTPUT_DIR:=playground/benchmark}"
benchmark() { "$PYTHON" -m llava.benchmark "$@" --output_dir "$OUTPUT_DIR"; }
to_page=(${DOCS:+--docs "$DOCS"})

if [[ $PROJECTOR_TYPES != none ]]; then
  types=()
  [[ $PROJECTOR_TYPES == all ]] || types=(--types "$PROJECTOR_TYPES")
  benchmark projectors --repeats "$REPEATS" "${types[@]}"
fi
for shape in $COUNT_SHAPES; do
  benchmark speed --shape "$shape" --count_only "${to_page[@]}" "$@"
done
for shape in $SHAPES; do
  benchmark speed --shape "$shape" --repeats "$REPEATS" "${to_page[@]}" "$@"
done
for shape in $STEP_SHAPES; do
  benchmark step --shape "$shape" --repeats "$REPEATS" "${to_page[@]}"
done
