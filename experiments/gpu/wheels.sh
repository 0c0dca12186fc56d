#!/usr/bin/env bash
# The packages that a GPU machine without network lacks, as wheels under .whl/: bash experiments/gpu/wheels.sh [PYTHON]
# It is taken to have torch, lightning, scipy, scikit-learn, pandas, matplotlib, rich and jinja2; wandb and dcm2niix are not needed.
set -euo pipefail
cd "$(dirname "$0")/../.."
platforms=(--platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_28_x86_64)
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "${1:-3.12}" --implementation cp "${platforms[@]}" \
  -d .whl 'hydra-core>=1.3.2,<1.4' 'omegaconf>=2.3,<2.4' 'monai>=1.5,<1.7' 'nibabel>=5.3' 'nilearn>=0.12' 'edt>=3.0' 'pydicom>=3.0' 'pebble>=5.0'
python3 -m pip wheel --quiet --no-deps -w .whl 'antlr4-python3-runtime==4.9.*'  # Hydra's parser is published as source only
du -sh .whl
