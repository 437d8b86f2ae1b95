#!/usr/bin/env bash
# Trains fox and lego on one thread by schedules of configs/schedules; tools/time_to_quality.py makes the table.
#   NFC_GS_DATA=... benchmarks/time_to_quality.sh [OUTPUT=runs/ttq] [SEEDS="0 1"] [SCENES="fox4 lego400"] [SCHEDULES="plain lean"]
# Any other schedule than plain has half as many Gaussians more. Finished runs are left alone, so it can be stopped and started
# again.
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:-runs/ttq}
seeds=${2:-0 1}
scenes=${3:-fox4 lego400}
schedules=${4:-plain lean}
nfc_gs=${NFC_GS:-.venv/bin/nfc-gs}
unset NFC_GS_LPIPS  # at every look it would take longer than the training in between
# Compiles the kernels where they are not yet, which no run should have to pay for.
for degree in 1 3; do
  $nfc_gs train configs/toy.yaml steps=60 strategy.every=20 schedule.sh_every=10 schedule.sh_degree=$degree threads=1 \
    evaluation.every=0 output="$output" name=warm --overwrite
done
for seed in $seeds; do
  for scene in $scenes; do
    case $scene in
      fox4) settings="configs/static/fox.yaml" cap=40000 ;;
      lego400) settings="configs/static/lego.yaml dataset.test_stride=3" cap=50000 ;;
      fox8) settings="configs/static/fox.yaml dataset.downscale=8" cap=20000 ;;
      lego200) settings="configs/static/lego.yaml dataset.downscale=2 dataset.test_stride=3" cap=20000 ;;
      *) echo "time_to_quality.sh: no scene $scene (fox4, lego400, fox8, lego200)" >&2; exit 2 ;;
    esac
    for schedule in $schedules; do
      name=${scene}_${schedule}_s$seed
      [ -e "$output/$name/metrics.json" ] && continue
      every=100 most=$((cap * 3 / 2))
      [ "$schedule" = plain ] && every=500 most=$cap
      # shellcheck disable=SC2086
      $nfc_gs train $settings "configs/schedules/$schedule.yaml" strategy.cap_max=$most seed="$seed" threads=1 \
        output="$output" name="$name" evaluation.every=$every evaluation.pictures=0 'callbacks.clock={}' \
        callbacks.tensorboard=null callbacks.export=null callbacks.checkpoints=null --overwrite
    done
  done
done
