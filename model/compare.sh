#!/usr/bin/env bash
# The full Task 1 comparison, in calls of at most MINUTES each; checkpoints are kept, so the same
# command goes on where the last call stopped. Exit code 75: call again. 0: the table is written.
#
#   model/compare.sh DATA RUN [MINUTES] [setting=value ...]
#
#   DATA  a data folder (HECKTOR, nnU-Net, phantoms; for the soft-tissue sarcomas, which show no
#         head, add data.region=centre)
#   RUN   where checkpoints, scores, the table and the plot go
#   TEST  (environment) a data folder to score on instead of the folds' held-out patients
#   FOLDS (environment) e.g. "0 1 2"; all five if not set
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

data=${1:?usage: model/compare.sh DATA RUN [MINUTES] [setting=value ...]}
run=${2:?usage: model/compare.sh DATA RUN [MINUTES] [setting=value ...]}
minutes=${3:-9}
settings=("${@:4}")

options=(--run "$run" --minutes "$minutes")
for fold in ${FOLDS:-}; do options+=(--fold "$fold"); done
if [[ -n "${TEST:-}" ]]; then options+=(--test "$TEST"); fi
for network in hmvnet segresnet swinunetr resenc-unet; do options+=(--network "$network"); done

exec "${HMVNET:-.venv/bin/hmvnet}" segmentation compare "${options[@]}" \
    "data.root=$data" training.batch_size=2 training.steps=4000 training.validate_every=4000 \
    "${settings[@]}"
