#!/usr/bin/env bash
# Trains moving scenes by every field, beside the twin that stays still and the one whose times are shuffled.
#   NFC_GS_DATA=... NFC_GS_LPIPS=... benchmarks/dynamic.sh [OUTPUT=runs/dynamic] [SEEDS="0 1 2"] [ROWS="..."]
# One thread each: two with different ROWS may run side by side. Runs that are already there are left alone.
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:-runs/dynamic}
seeds=${2:-0 1 2}
rows=${3:-robot_bases robot_static robot_hexplane robot_mlp ball_bases ball_static robot_shuffled robot_nfc robot_noisy \
robot_noisy_nfc robot_half robot_half_nfc texture_bases texture_static robot_long robot_long_nfc robot_short toy_arm toy_ball \
toy_appearing robot_labels robot_hexplane_nfc robot_residual robot_offsets}
nfc_gs=${NFC_GS:-.venv/bin/nfc-gs}
robot=configs/dynamic/robot_dance.yaml
small="dataset.downscale=3 strategy.cap_max=4000"
toy="configs/dynamic/toy.yaml steps=5000 dataset.size=128 dataset.num_train=60 dataset.num_test=8 strategy.cap_max=4000"
for seed in $seeds; do
  for row in $rows; do
    case $row in
      robot_bases) settings="$robot" ;;
      robot_static) settings="$robot configs/dynamic/fields/static.yaml" ;;
      robot_shuffled) settings="$robot dataset.shuffle_times=true" ;;
      robot_hexplane) settings="$robot configs/dynamic/fields/hexplane.yaml $small" ;;
      # Three minutes of a core are 6,000 steps of this network.
      robot_mlp) settings="$robot configs/dynamic/fields/mlp.yaml $small steps=6000" ;;
      robot_nfc) settings="$robot configs/methods/nfc.yaml" ;;
      robot_noisy) settings="$robot degradation.noise=0.1" ;;
      robot_noisy_nfc) settings="$robot configs/methods/nfc.yaml degradation.noise=0.1" ;;
      robot_half) settings="$robot dataset.train_stride=2" ;;
      robot_half_nfc) settings="$robot configs/methods/nfc.yaml dataset.train_stride=2" ;;
      ball_bases) settings="configs/dynamic/mujoco7.yaml" ;;
      ball_static) settings="configs/dynamic/mujoco7.yaml configs/dynamic/fields/static.yaml" ;;
      texture_bases) settings="configs/dynamic/mujoco7.yaml dataset.folder=$NFC_GS_DATA/mujoco_scene10_texture_400" ;;
      texture_static) settings="configs/dynamic/mujoco7.yaml configs/dynamic/fields/static.yaml dataset.folder=$NFC_GS_DATA/mujoco_scene10_texture_400" ;;
      toy_arm) settings="$toy" ;;
      toy_ball) settings="$toy dataset.motion=bouncing time.window=0.06" ;;
      toy_appearing) settings="$toy configs/dynamic/fields/hexplane.yaml dataset.motion=appearing deformation.residuals.opacity_logits=true" ;;
      robot_long) settings="configs/dynamic/robot_dance_long.yaml" ;;
      robot_long_nfc) settings="configs/dynamic/robot_dance_long.yaml configs/methods/nfc.yaml" ;;
      robot_short) settings="$robot steps=8000" ;;
      # The ablations of classification: what is classified, and what the network may change over time.
      robot_labels) settings="$robot configs/methods/nfc.yaml configs/dynamic/nfc/labels.yaml" ;;
      robot_hexplane_nfc) settings="$robot configs/dynamic/fields/hexplane.yaml configs/methods/nfc.yaml $small" ;;
      robot_residual) settings="$robot configs/dynamic/fields/hexplane.yaml configs/methods/nfc.yaml configs/dynamic/nfc/residual.yaml $small" ;;
      robot_offsets) settings="$robot configs/dynamic/fields/hexplane.yaml configs/methods/nfc.yaml configs/dynamic/nfc/offsets.yaml $small" ;;
      *) echo "dynamic.sh: no row $row" >&2; exit 2 ;;
    esac
    name=${row}_s$seed
    [ -e "$output/$name/metrics.json" ] && continue
    # shellcheck disable=SC2086
    $nfc_gs train $settings seed="$seed" threads=1 output="$output" name="$name" evaluation.every=2000 --overwrite
  done
done
