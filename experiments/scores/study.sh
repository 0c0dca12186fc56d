#!/usr/bin/env bash
# Three cohorts, a detector trained on each, all detectors scored: bash experiments/scores/study.sh  (hours on two cores)
# Called again it goes on where it was stopped.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
for seed in ${SEEDS:-21 22 23}; do
  common="study=experiments/scores/bench.yaml dataset.seed=$seed"
  twins=$([ "$seed" = 21 ] && echo true || echo false)  # for experiments/phantom_difficulty
  $python -m anomaly3d.prepare $common dataset.twins=$twins
  $python -m anomaly3d.train $common dataset.twins=$twins run=bench$seed
  [ -n "${UNTIL_TRAINED:-}" ] || $python -m anomaly3d.evaluate run=bench$seed logger=none images=0
done
