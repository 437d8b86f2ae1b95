#!/usr/bin/env bash
# Trains fox and lego by regression and by classification, three seeds each, and makes the tables.
#   NFC_GS_DATA=... NFC_GS_LPIPS=... benchmarks/static.sh [OUTPUT=runs/bench] [THREADS=1] [SEEDS="0 1 2"] [SCENES="fox lego200 lego400"]
# Runs that are already there are left alone, so it can be stopped and started again.
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:-runs/bench}
threads=${2:-1}
seeds=${3:-0 1 2}
scenes=${4:-fox lego200 lego400}
nfc_gs=${NFC_GS:-.venv/bin/nfc-gs}
for seed in $seeds; do
  for scene in $scenes; do
    case $scene in
      fox) settings="configs/static/fox.yaml" ;;
      lego200) settings="configs/static/lego.yaml dataset.downscale=2 dataset.test_stride=3 strategy.cap_max=40000" ;;
      lego400) settings="configs/static/lego.yaml dataset.test_stride=3" ;;
      *) echo "static.sh: no scene $scene (fox, lego200, lego400)" >&2; exit 2 ;;
    esac
    for method in regression nfc; do
      name=${scene}_${method}_s$seed
      [ -e "$output/$name/metrics.json" ] && continue
      # shellcheck disable=SC2086
      $nfc_gs train $settings "configs/methods/$method.yaml" seed="$seed" threads="$threads" \
        output="$output" name="$name" evaluation.every=500 --overwrite
    done
  done
done
