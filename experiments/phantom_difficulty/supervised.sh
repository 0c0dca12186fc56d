#!/usr/bin/env bash
# The supervised control learns from 200 + 200 labelled phantoms of a seed of its own; its design and number of epochs
# were chosen on version 3 (README.md).
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
common="study=experiments/scores/bench.yaml dataset.seed=20 dataset.counts.train=8 dataset.counts.calibration=0
  dataset.counts.validation=8 dataset.counts.test_normal=4 dataset.counts.test_lesion=4 dataset.counts.b_test_normal=0
  dataset.counts.b_test_lesion=0 dataset.counts.labelled_normal=200 dataset.counts.labelled_lesion=200"
$python -m anomaly3d.prepare $common
$python -m anomaly3d.train $common detector=supervised run=bench20
