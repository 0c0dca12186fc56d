#!/usr/bin/env bash
# The supervised control learns from 200 + 200 labelled phantoms of a seed of its own; its design and number of epochs
# were chosen on version 3 (README.md).
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
common="study=experiments/phantom_difficulty/labelled.yaml"
$python -m anomaly3d.prepare $common
$python -m anomaly3d.train $common detector=supervised run=bench20
